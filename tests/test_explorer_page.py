"""The explorer as a page of its own, from disk, in a Chromium without a network: by mouse and keyboard."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Page
from support.browser import launch
from support.explorer_models import EVERY_KIND, GRID

from vit_course.lab.explorer import AttentionExplorer
from vit_course.lab.explorer.payload import decode, encode, payload_bytes
from vit_course.vit import ViT

DRAWN_MS = 2.0
# Decodes a row in the page with the functions of the page's own script.
ROW = """async ([layer, head, query]) => {
    const source = document.getElementById("explorer").textContent;
    const explorer = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    const letters = atob(document.getElementById("data").textContent);
    const packed = Uint8Array.from(letters, letter => letter.charCodeAt(0));
    const inflated = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const { _meta } = JSON.parse(document.getElementById("state").textContent);
    const payload = explorer.openPayload(_meta, new DataView(await new Response(inflated).arrayBuffer()));
    const chosen = payload.panels[0].layers[layer], out = new Float32Array(chosen.keys);
    explorer.addRow(chosen, head * chosen.queries, query, 1, out);
    return [...out];
}"""
TIMES = "performance.getEntriesByName('vit-explorer-draw').map(entry => entry.duration)"


# Each needs a browser.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Gives a headless Chromium for all tests here."""
    with launch() as browser:
        yield browser


class Shown:
    """An explorer's page, for hands and eyes; a complaint or a request of the page is an error at the end."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page, self.complaints = page, []
        page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._note_request)
        page.goto(path.as_uri())
        self.root = page.locator(".vit-explorer[data-drawn]")
        self.root.wait_for()
        page.wait_for_timeout(50)  # the first measuring of its size draws once more

    def _note_request(self, request: object) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.complaints.append(f"request to {request.url}")

    def state(self, name: str) -> str:
        return self.root.get_attribute(f"data-{name}")

    def words(self) -> str:
        return self.root.locator("[data-role=words]").inner_text().replace("\xa0", " ")

    def move_to(self, patch: int, grid: tuple[int, int] = GRID, panel: int = 0) -> None:
        box = self.root.locator(f"canvas[data-panel='{panel}']").bounding_box()
        row, column = divmod(patch, grid[1])
        self.page.mouse.move(
            box["x"] + (column + 0.5) / grid[1] * box["width"],
            box["y"] + (row + 0.5) / grid[0] * box["height"],
        )

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def colour(self, patch: int, grid: tuple[int, int] = GRID, panel: int = 0) -> list[int]:
        """The colour in a corner of a patch, free of dashes and frames."""
        row, column = divmod(patch, grid[1])
        return self.root.locator(f"canvas[data-panel='{panel}']").evaluate(
            """(canvas, [x, y]) => {
                const [left, top] = [x * canvas.width, y * canvas.height];
                return [...canvas.getContext("2d").getImageData(left, top, 1, 1).data];
            }""",
            [(column + 0.25) / grid[1], (row + 0.25) / grid[0]],
        )


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator:
    """Gives a function that opens an explorer's page at some width."""
    opened: list[Shown] = []

    def open_page(explorer: AttentionExplorer, width: int = 900, **context: object) -> Shown:
        page = browser.new_context(
            viewport={"width": width, "height": 900}, offline=True, **context
        ).new_page()
        opened.append(Shown(page, explorer.to_html(tmp_path / "page.html")))
        return opened[-1]

    yield open_page
    for shown in opened:
        shown.page.context.close()
        assert shown.complaints == []


def test_the_page_decodes_what_python_encoded(show):
    explorer = EVERY_KIND["vit"]()
    row = torch.tensor(show(explorer).page.evaluate(ROW, [1, 1, 12]))
    wanted = decode(*encode(explorer._panels[0].layers[1].weights[0, 1, 12]))
    torch.testing.assert_close(row, wanted, atol=0, rtol=1e-5)


@pytest.mark.parametrize("name", EVERY_KIND)
def test_every_kind_of_layer_opens_with_pythons_words(show, name):
    explorer = EVERY_KIND[name]()
    shown = show(explorer)
    letters = str.maketrans("", "", "0123456789.− ")
    assert " ".join(shown.words().split()).translate(letters) == " ".join(explorer.words.split()).translate(
        letters
    )
    explorer.layer = 0
    shown.page.select_option("[data-role=layer]", "0")
    assert " ".join(shown.words().split()).translate(letters) == " ".join(explorer.words.split()).translate(
        letters
    )


def test_hovering_shows_the_patch_under_the_mouse_and_a_click_keeps_it(show):
    shown = show(EVERY_KIND["vit"]())
    for patch in (0, 7, 20, 40, 47):
        shown.move_to(patch)
        assert shown.state("token") == str(patch) and shown.words().startswith(f"Patch {patch} ")
    assert shown.state("pinned") == "11"
    shown.page.mouse.move(1, 1)
    assert shown.state("token") == "11"
    shown.move_to(20)
    shown.page.mouse.down()
    shown.page.mouse.up()
    shown.page.mouse.move(1, 1)
    assert shown.state("token") == shown.state("pinned") == "20"


def test_the_strongest_patch_is_coloured_most(show):
    explorer = EVERY_KIND["no class token"]()
    explorer.token = 3
    values = explorer.map().flatten()
    strongest, weakest = int(values.argmax()), int(values.argmin())
    shown = show(explorer)
    yellow = shown.colour(strongest)

    def pixel(patch: int) -> torch.Tensor:
        return explorer._images[0, :, patch // 8 * 4 + 1, patch % 8 * 4 + 1] * 255

    assert yellow[:3] == pytest.approx(
        (0.1 * pixel(strongest) + 0.9 * torch.tensor([253, 231, 37])).tolist(), abs=4
    )
    ground = shown.colour(weakest)
    assert ground[:3] == pytest.approx(pixel(weakest).tolist(), abs=60), (
        "where there is no weight the picture shows"
    )


def test_the_keys_do_all(show):
    shown = show(EVERY_KIND["vit"]())
    shown.root.focus()
    shown.press("ArrowRight", "ArrowDown")
    assert shown.state("token") == "20" and shown.state("pinned") == "11"
    shown.press("Enter")
    assert shown.state("pinned") == "20"
    shown.press("c")
    assert shown.state("token") == "cls" and shown.words().startswith("The class token looks")
    shown.press("ArrowLeft")
    assert shown.state("token") == "28"
    shown.press("[", "[", "[")
    assert shown.state("layer") == "0"
    shown.press("]")
    assert shown.state("layer") == "1"
    shown.press(".")
    assert shown.state("head") == "rollout" and "Through layers 0 to 1" in shown.words()
    shown.press(".", ".", ".")
    assert shown.state("head") == "1"
    shown.press(",", "s", "m", "PageDown")
    assert [shown.state(name) for name in ("head", "direction", "mass", "image")] == ["0", "key", "0.6", "1"]
    assert "is looked at most by" in shown.words() and "IoU with the true mask" in shown.words()
    help_list = shown.root.locator(".vx-help")
    shown.press("?")
    assert help_list.is_visible() and help_list.locator("dt").count() >= 10
    shown.press("Escape")
    assert not help_list.is_visible() and shown.root.evaluate("root => root === document.activeElement")
    shown.press("Escape")
    assert not shown.root.evaluate("root => root.contains(document.activeElement)")


def test_every_control_has_a_name_and_works(show):
    shown = show(EVERY_KIND["vit"]())
    tree = shown.root.aria_snapshot()
    selects = [f'combobox "{name}"' for name in ("Picture", "Layer", "Head", "The patch")]
    for control in (*selects, 'slider "Mask"', 'button "Class token"', 'button "keys"'):
        assert control in tree
    shown.page.select_option("[data-role=head]", "1")
    shown.page.select_option("[data-role=direction]", "key")
    shown.page.select_option("[data-role=image]", "1")
    shown.page.locator("[data-role=mass]").fill("0.35")
    shown.page.locator("[data-role=class-token]").click()
    names = ("head", "direction", "image", "mass", "token")
    assert [shown.state(name) for name in names] == ["1", "key", "1", "0.35", "cls"]
    shown.root.locator("button[data-head='0']").click()
    assert shown.state("head") == "0"
    assert shown.root.locator("button[aria-pressed=true][data-head]").get_attribute("data-head") == "0"


def test_two_models_share_one_hover(show):
    shown = show(EVERY_KIND["two models"]())
    shown.page.select_option("[data-role=layer]", "0")
    shown.move_to(20, panel=1)
    first, second = shown.root.locator("[data-role=words] p").all_inner_texts()
    assert first.startswith("ViT: Patch 20 ") and second.startswith("ragged: Patch 20 ")


def test_a_window_is_drawn_in_its_place_and_nothing_outside(show):
    explorer = EVERY_KIND["window"]()
    shown = show(explorer)
    shown.page.select_option("[data-role=layer]", "3")
    shown.move_to(9)
    explorer.layer, explorer.token = 3, 9
    values = explorer.map().flatten()
    outside = [patch for patch in range(48) if values[patch].isnan()]
    assert len(outside) == 44
    for patch in outside[::7]:
        pixel = explorer._images[0, :, patch // 8 * 4 + 1, patch % 8 * 4 + 1] * 255
        assert shown.colour(patch)[:3] == pytest.approx(pixel.tolist(), abs=2)
    assert shown.words().startswith("Among the 4 patches of its window (outlined), patch 9 ")


def test_a_new_layer_with_another_grid_takes_the_patch_along(show):
    shown = show(EVERY_KIND["window"]())
    shown.move_to(16 * 11 + 15, (12, 16))
    shown.page.mouse.down()
    shown.page.mouse.up()
    shown.page.mouse.move(1, 1)
    shown.page.select_option("[data-role=layer]", "2")
    assert (shown.state("token"), shown.state("pinned")) == ("47", "47")


@pytest.mark.parametrize("name", ["vit", "two models"])
@pytest.mark.parametrize("width", [360, 700, 1200])
def test_nothing_overflows_and_words_do_not_move_the_rest(show, name, width):
    shown = show(EVERY_KIND[name](), width=width)
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    frame = shown.root.bounding_box()
    for part in shown.root.locator("canvas, select, button, input, p").all():
        box = part.bounding_box()
        assert box["x"] >= frame["x"] and box["x"] + box["width"] <= frame["x"] + frame["width"]
    parts = "root.querySelectorAll('canvas, select, button, [data-role=words]')"
    places = f"root => [...{parts}].map(part => part.getBoundingClientRect().top + scrollY)"
    before = shown.root.evaluate(places)
    shown.root.focus()
    shown.press("m", "s", "ArrowDown")
    assert "IoU" in shown.words() and shown.root.evaluate(places) == before


def test_drawing_takes_less_than_two_milliseconds(show):
    torch.manual_seed(0)
    model = ViT(image_size=224, patch_size=16, num_classes=10, dim=384, depth=12, heads=6, mlp_dim=384)
    explorer = AttentionExplorer(model, torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0)))
    assert payload_bytes(explorer._panels) == 2_850_984
    shown = show(explorer)
    rounds = []
    for _ in range(3):  # the best of three: what other programs take of a busy machine is not ours
        shown.page.evaluate("performance.clearMeasures()")
        for step in range(100):
            shown.move_to(37 * step % 196, (14, 14))
        times = sorted(shown.page.evaluate(TIMES))
        assert len(times) >= 100
        rounds.append(times[95])
    assert min(rounds) < DRAWN_MS, f"95th percentiles of three rounds, in ms: {rounds}"


def test_without_a_script_there_is_a_picture(browser, tmp_path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(EVERY_KIND["vit"]().to_html(tmp_path / "page.html").as_uri())
    assert page.locator("img").get_attribute("alt").startswith("Attention explorer. Layer 2")
    context.close()


def test_dark_is_dark(show):
    dark, light = (show(EVERY_KIND["grey"](), color_scheme=scheme) for scheme in ("dark", "light"))
    paper = "root => getComputedStyle(root).backgroundColor.match(/\\d+/g).map(Number)"
    assert max(dark.root.evaluate(paper)) < 60 < 200 < min(light.root.evaluate(paper))


def test_a_picture_keeps_its_shape(show):
    box = show(EVERY_KIND["vit"]()).root.locator("canvas[data-panel='0']").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(32 / 24, rel=0.01)

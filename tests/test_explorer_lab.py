"""The explorer where learners meet it: in the real JupyterLab, in a real Chromium, by mouse and keyboard."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import nbformat
import pytest
from execute import METADATA, normalise
from playwright.sync_api import ConsoleMessage, Page, Request, WebSocket
from support.browser import launch

TOKEN = "lesson"
# A busy machine of two cores may need long; nothing here waits for a time, only for what should happen.
PATIENCE_S = 60
GRID = 8
CELLS = [
    """\
import torch
from vit_course.lab.data import shapes
from vit_course.lab.explorer import AttentionExplorer
from vit_course.vit import ViT

torch.manual_seed(0)
model = ViT(image_size=32, patch_size=4, num_classes=10, dim=32, depth=3, heads=2, mlp_dim=64)
explorer = AttentionExplorer(model, shapes("easy", "test", count=2).images)
explorer""",
    'print("patch", explorer.token)',
    "explorer.token, explorer.layer, explorer.head = 12, 0, 1",
]


class Lab:
    """A notebook that is open in JupyterLab, and what its page said and sent since it was opened.

    Attributes:
        messages: the type of every message that the page sent to the kernel.
        complaints: what went wrong in the page.
    """

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.messages: list[str] = []
        self.complaints: list[str] = []
        page.set_default_timeout(1000 * PATIENCE_S)
        page.on("websocket", self._listen)
        page.on("console", self._note_console)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("request", self._note_request)

    def _listen(self, websocket: WebSocket) -> None:
        if websocket.url.split("?")[0].endswith("/channels"):
            websocket.on("framesent", lambda frame: self.messages.append(message_type(frame)))

    def _note_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(f"console: {message.text} ({message.location.get('url')})")

    def _note_request(self, request: Request) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.complaints.append(f"request to {request.url}")

    def open(self, notebook: str) -> None:
        """Opens a notebook in a workspace of its own and waits until its kernel answers."""
        workspace = notebook.removesuffix(".ipynb")
        self.page.goto(f"{self.address}/lab/workspaces/{workspace}/tree/{notebook}?token={TOKEN}")
        self.wait_for_kernel()

    def wait_for_kernel(self) -> None:
        """Waits until the notebook on the page is there and its kernel answers."""
        self.page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.context")
        self.page.evaluate(
            """async () => {
                const context = jupyterapp.shell.currentWidget.context;
                await context.ready;
                await context.sessionContext.ready;
                await context.sessionContext.session.kernel.info;
            }"""
        )

    def command(self, name: str, **arguments: object) -> None:
        """Carries out one of JupyterLab's commands and waits for its end."""
        self.page.evaluate(
            "([name, arguments]) => jupyterapp.commands.execute(name, arguments).then(() => {})",
            [name, arguments],
        )

    def output_of(self, cell: int) -> str:
        """Runs one cell as Shift + Enter would, and returns what it printed."""
        self.page.evaluate(
            "cell => { jupyterapp.shell.currentWidget.content.activeCellIndex = cell; }",
            cell,
        )
        self.command("notebook:run-cell")
        outputs = self.cells()[cell]["outputs"]
        return "".join(output.get("text", "") for output in outputs).strip()

    def cells(self) -> list[dict]:
        """Returns the cells of the open notebook as they are in the page."""
        return self.page.evaluate("jupyterapp.shell.currentWidget.content.model.toJSON().cells")


class Explorer:
    """The explorer on the page, for hands and eyes."""

    def __init__(self, page: Page) -> None:
        self.page, self.root = page, page.locator(".vit-explorer")
        self.root.wait_for()
        self.settle()

    def state(self, name: str) -> str:
        """Returns what the explorer shows: its token, layer, head or direction, or how often it has drawn."""
        return self.root.get_attribute(f"data-{name}")

    def words(self) -> str:
        """Returns the sentences below the picture."""
        return self.root.locator("[data-role=words]").inner_text()

    def settle(self) -> None:
        """Waits until two frames have been painted: what was to be drawn or sent by then, was."""
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def sticking_out(self) -> list[str]:
        """Returns the visible parts that reach over the left or right edge of the explorer, as HTML."""
        return self.root.evaluate(
            """root => {
                const frame = root.getBoundingClientRect();
                return [...root.querySelectorAll("*")].filter(part => {
                    const { left, right } = part.getBoundingClientRect();
                    return part.checkVisibility() && (left < frame.left || right > frame.right);
                }).map(part => part.outerHTML);
            }"""
        )

    def move_to(self, patch: int) -> None:
        """Moves the pointer over the middle of a patch of the first picture."""
        canvas = self.root.locator("canvas[data-panel='0']")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        row, column = divmod(patch, GRID)
        self.page.mouse.move(
            box["x"] + (column + 0.5) / GRID * box["width"], box["y"] + (row + 0.5) / GRID * box["height"]
        )
        self.settle()

    def click(self, patch: int) -> None:
        """Clicks on the middle of a patch of the first picture."""
        self.move_to(patch)
        self.page.mouse.down()
        self.page.mouse.up()
        self.settle()

    def press(self, *keys: str) -> None:
        """Presses keys one after the other, wherever the focus is."""
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()


def message_type(frame: bytes | str) -> str:
    """Returns the type of a message in Jupyter's websocket protocol v1: offsets, channel, header, …"""
    if isinstance(frame, str):
        return json.loads(frame)["header"]["msg_type"]
    start, end = (int.from_bytes(frame[8 * place : 8 * place + 8], "little") for place in (2, 3))
    return json.loads(frame[start:end])["msg_type"]


# Each needs a browser.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gives the folder that JupyterLab shows, with a notebook in it that was never run."""
    folder = tmp_path_factory.mktemp("work")
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    nbformat.write(nbformat.v4.new_notebook(metadata=METADATA, cells=cells), folder / "explorer.ipynb")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Starts the JupyterLab of `make lab` on a free port, as if for the first time, and gives its address."""
    home = tmp_path_factory.mktemp("home")
    settings = home / "settings"
    # JupyterLab is not to look for a newer version of itself.
    notification = settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    notification.parent.mkdir(parents=True)
    notification.write_text('{"checkForUpdates": false}', encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")}
    environment |= {"HOME": str(home), "JUPYTERLAB_SETTINGS_DIR": str(settings)}
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--ip=localhost",
        f"--port={port}",
        "--no-browser",
        "--allow-root",
    ]
    command += [
        f"--ServerApp.root_dir={folder}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={TOKEN}",
    ]
    command += ["--LabApp.expose_app_in_browser=True"]
    with (home / "server.log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for_server(f"http://localhost:{port}/api", server, home / "server.log")
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait(PATIENCE_S)


def wait_for_server(url: str, server: subprocess.Popen, log: Path) -> None:
    """Return when something answers at `url`.

    Raises:
        RuntimeError: with the server's words, where it ends before or takes too long.
    """
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8')}")


@pytest.fixture(scope="module")
def lab(address: str) -> Iterator[Lab]:
    """Gives the notebook, open and run, in a fresh Chromium."""
    with launch() as browser:
        lab = Lab(browser.new_page(viewport={"width": 1280, "height": 900}), address)
        lab.open("explorer.ipynb")
        lab.command("notebook:run-all-cells")
        yield lab


@pytest.fixture
def explorer(lab: Lab) -> Iterator[Explorer]:
    """Gives the explorer of the open notebook; afterwards the page must not have complained."""
    yield Explorer(lab.page)
    assert lab.complaints == []


def test_hovering_is_silent_and_a_click_tells_python(lab, explorer):
    lab.messages.clear()
    for patch in (0, 7, 9, 18, 27, 36, 45, 54, 63, 56, 40, 33):
        explorer.move_to(patch)
        assert explorer.state("token") == str(patch)
        assert explorer.words().lower().startswith(f"patch {patch} ")
    assert lab.messages == []

    explorer.click(27)
    assert lab.output_of(1) == "patch 27"
    assert lab.messages == ["comm_msg", "execute_request"]


def test_what_python_sets_is_shown(lab, explorer):
    explorer.page.mouse.move(1, 1)
    assert lab.output_of(2) == ""
    explorer.page.wait_for_function(
        "() => { const {token, layer, head} = document.querySelector('.vit-explorer').dataset;"
        " return token === '12' && layer === '0' && head === '1'; }"
    )
    assert explorer.words().lower().startswith("patch 12 ")


def test_everything_can_be_reached_from_the_keyboard(lab, explorer):
    lab.output_of(2)
    explorer.root.focus()
    lab.messages.clear()
    explorer.press("Home")
    assert explorer.state("token") == "cls" and "the class token" in explorer.words().lower()
    explorer.press("ArrowRight")
    patch = int(explorer.state("token"))
    for key, distance in (("ArrowDown", GRID), ("ArrowRight", 1), ("ArrowLeft", -1), ("ArrowUp", -GRID)):
        explorer.press(key)
        patch += distance
        assert explorer.state("token") == str(patch)
    assert lab.messages == []
    explorer.press("Enter")
    assert lab.messages == ["comm_msg"]
    assert lab.output_of(1) == f"patch {patch}"

    explorer.root.focus()
    for key, back, choice in (("]", "[", "layer"), (",", ".", "head"), ("s", "s", "direction")):
        before = explorer.state(choice)
        explorer.press(key)
        assert explorer.state(choice) != before
        explorer.press(back)
        assert explorer.state(choice) == before
    last_key_listed = explorer.root.get_by_text("Escape")
    explorer.press("?")
    assert last_key_listed.is_visible() and explorer.sticking_out() == []
    explorer.press("?")
    assert not last_key_listed.is_visible()
    explorer.press("Escape")
    assert not explorer.root.evaluate("root => root.contains(document.activeElement)")


def test_no_key_reaches_the_notebook(lab, explorer):
    """In JupyterLab a and b insert cells, d d deletes and x cuts one, y and m change its kind, z undoes."""
    before = [(cell["cell_type"], cell["source"]) for cell in lab.cells()]
    controls = explorer.root.locator("select:enabled, button:enabled, input:enabled").all()
    assert len(controls) > 5
    for place in (explorer.root, *controls):
        place.focus()
        explorer.press("a", "b", "d", "d", "x", "y", "m", "m", "z", "1", "Shift+J", "Shift+Enter")
        assert [(cell["cell_type"], cell["source"]) for cell in lab.cells()] == before


# The contrast of every text with what lies behind it, after WCAG 2.2.
CONTRASTS = """root => {
    const channels = colour => colour.match(/[\\d.]+/g).map(Number);
    const over = ([...front], back) => back.map((c, place) => c + (front[place] - c) * (front[3] ?? 1));
    const ground = node => channels(getComputedStyle(node).backgroundColor);
    const behind = node => node ? over(ground(node), behind(node.parentElement)) : [255, 255, 255];
    const linear = c => c <= 0.04045 * 255 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const contrast = (node, back = behind(node)) => {
        const ink = over(channels(getComputedStyle(node).color), back);
        const [dark, light] = [luminance(ink), luminance(back)].sort((a, b) => a - b);
        return (light + 0.05) / (dark + 0.05);
    };
    const isText = child => child.nodeType === 3 && child.textContent.trim();
    const hasText = node => [...node.childNodes].some(isText);
    const texts = [...root.querySelectorAll("*")].filter(node => hasText(node) && node.checkVisibility());
    return texts.map(node => [node.textContent.trim(), contrast(node)]);
}"""
SMALL_TEXT = 4.5


@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light"])
def test_its_text_can_be_read_in_light_and_dark(lab, explorer, theme, tmp_path):
    lab.command("apputils:change-theme", theme=theme)
    explorer.page.wait_for_function("theme => document.body.dataset.jpThemeName === theme", arg=theme)
    explorer.move_to(27)
    explorer.page.screenshot(path=tmp_path / f"{theme}.png")
    contrasts = explorer.root.evaluate(CONTRASTS)
    assert len(contrasts) > 10
    assert [text for text, contrast in contrasts if contrast < SMALL_TEXT] == []


def test_a_narrow_window_shows_all_of_it(lab, explorer, tmp_path):
    wide = explorer.page.viewport_size
    lab.command("application:toggle-left-area")
    explorer.page.set_viewport_size({"width": 520, "height": 900})
    try:
        for key in ("Escape", "?"):  # the list of keys is closed, whoever opened it, and opened
            explorer.root.focus()
            explorer.press(key)
        assert explorer.root.get_by_text("Escape").is_visible()
        explorer.page.screenshot(path=tmp_path / "narrow.png")
        frame = explorer.root.bounding_box()
        assert frame["x"] + frame["width"] <= 520
        assert explorer.sticking_out() == []
        explorer.press("?")
    finally:
        explorer.page.set_viewport_size(wide)
        lab.command("application:toggle-left-area")


def test_after_a_reload_it_is_back_with_its_patch(lab, explorer):
    explorer.click(45)
    assert lab.output_of(1) == "patch 45"
    lab.command("docmanager:save")
    explorer.page.reload()
    lab.wait_for_kernel()
    back = Explorer(explorer.page)
    assert back.state("token") == "45"
    assert lab.output_of(1) == "patch 45"


def test_stored_without_its_kernel_it_is_a_picture(lab, folder):
    notebook = nbformat.read(folder / "explorer.ipynb", as_version=4)
    normalise(notebook)
    nbformat.write(notebook, folder / "stored.ipynb")
    lab.open("stored.ipynb")
    picture = lab.page.locator(".jp-OutputArea img")
    picture.wait_for()
    assert picture.evaluate("picture => picture.naturalWidth") > 300
    assert lab.page.locator(".vit-explorer").count() == 0
    assert lab.complaints == []

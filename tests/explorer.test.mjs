// The explorer's pure functions, by node's own test runner. EXPLORER_CASES is a folder that
// test_explorer_js.py has filled: payloads, and what Python sees in them in full precision. Run it through
// pytest.
import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

const explorer = await import(pathToFileURL(process.env.EXPLORER_JS));
const folder = process.env.EXPLORER_CASES;
const cases = readdirSync(folder)
    .filter((name) => name.endsWith(".json"))
    .map((name) => {
        const { meta, views } = JSON.parse(readFileSync(`${folder}/${name}`));
        const bytes = readFileSync(`${folder}/${name.replace(/json$/, "bin")}`);
        return { name, meta, views, bytes };
    });
assert.ok(cases.length >= 8, "no cases: run this through pytest");

const open = ({ meta, bytes }) =>
    explorer.openPayload(meta, new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength));
const numbers = /−?\d+(\.\d+)?/g;

/** What the page computes for one choice and model. */
function viewOf(payload, { choice, model }) {
    const [first, panel] = [payload.panels[0], payload.panels[model]];
    const number = explorer.matching(choice.layer, panel.layers.length, first.layers.length);
    return explorer.look(panel, number, choice);
}

for (const each of cases) {
    test(`${each.name}: maps, masks and words are Python's`, () => {
        const payload = open(each);
        let models = [],
            compared = 0,
            tie = false;
        for (const expected of each.views) {
            const { choice } = expected,
                view = viewOf(payload, expected),
                { layer } = view,
                values = view.matrix ?? view.values;
            const scale = Math.max(
                ...[...expected.values, ...expected.prefix].map((value) => Math.abs(value ?? 0)),
            );
            // Every step of a rollout adds its rounding; a mean of rows is within half a percent of the
            // largest of their maxima.
            const close =
                choice.head === "rollout" ? 0.02 * scale : 0.005 * Math.max(...layer.scales.map(Math.abs));
            assert.equal(values.length, expected.values.length);
            values.forEach((value, cell) => {
                const wanted = expected.values[cell];
                if (wanted === null) assert.ok(Number.isNaN(value));
                else
                    assert.ok(
                        Math.abs(value - wanted) <= close,
                        `${JSON.stringify(choice)} cell ${cell}: ${value} is not ${wanted}`,
                    );
            });
            expected.prefix.forEach((wanted, place) =>
                assert.ok(Math.abs(view.prefix[place] - wanted) <= close),
            );

            if (expected.kept.length && choice.mass) {
                const kept = explorer.keepMass(view.values, choice.mass),
                    differ = expected.kept.filter((is, cell) => is !== kept[cell]);
                assert.ok(
                    differ.length <= 1 + 0.06 * kept.length,
                    `${differ.length} of ${kept.length} patches of the mask differ`,
                );
            }
            const truth =
                payload.masks && !view.matrix
                    ? explorer.coverage(
                          payload.masks[choice.image],
                          payload.height,
                          payload.width,
                          layer.grid,
                      )
                    : null;
            const named = payload.panels.length > 1 ? `${payload.panels[expected.model].name}: ` : "";
            models.push(named + explorer.describe(view, choice.mass, truth));
            const whole = expected.values.map((value) => value ?? NaN),
                [mine, theirs] = [values, whole].map((each) => explorer.strongest(each, view.aside));
            const apart = Math.abs(Math.abs(whole[mine]) - Math.abs(whole[theirs]));
            tie ||= mine !== theirs && apart <= close; // either patch may be called the strongest
            if (expected.words) {
                if (!tie) agree(models.join(" "), expected.words);
                [models, compared, tie] = [[], compared + !tie, false];
            }
        }
        assert.ok(
            compared >= (0.6 * each.views.length) / payload.panels.length,
            `only ${compared} of ${each.views.length} were compared`,
        );
    });
}

/** The same sentences about the same patches; shares may differ by what a byte for each weight costs, counts
 * by a patch at the limit. */
function agree(ours, pythons) {
    const names = /(patch|row|column|channel|layers 0 to) \d+/g;
    assert.deepEqual(ours.match(names), pythons.match(names), `${ours}\n${pythons}`);
    assert.equal(ours.replace(numbers, "#"), pythons.replace(numbers, "#"));
    const [mine, theirs] = [ours, pythons].map((words) => words.replace(names, "").match(numbers) ?? []);
    mine.forEach((text, at) => {
        const [number, wanted] = [text, theirs[at]].map((each) => Number(each.replace("−", "-")));
        const close = text.includes(".") ? 0.11 + 0.02 * Math.abs(wanted) : 1;
        assert.ok(Math.abs(number - wanted) <= close, `${text} is not ${theirs[at]}:\n${ours}\n${pythons}`);
    });
}

test("a payload of another length is refused with both numbers", () => {
    const { meta, bytes } = cases[0];
    assert.throws(
        () => explorer.openPayload(meta, new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength - 1)),
        new RegExp(`${meta.bytes - 1} bytes.*${meta.bytes}`),
    );
});

test("a payload may begin anywhere in its buffer", () => {
    const { meta, bytes } = cases[0],
        shifted = new Uint8Array(bytes.length + 3);
    shifted.set(bytes, 3);
    const [there, here] = [
        explorer.openPayload(meta, new DataView(shifted.buffer, 3, bytes.length)),
        open(cases[0]),
    ];
    assert.deepEqual(there.panels[0].layers[0].scales, here.panels[0].layers[0].scales);
});

test("a byte is a square of its row's maximum, or signed where the scale is negative", () => {
    const layer = {
        keys: 3,
        queries: 2,
        codes: Uint8Array.of(255, 0, 51, 1, 128, 255),
        scales: Float32Array.of(0.5, -2),
    };
    const row = new Float32Array(3),
        signed = new Float32Array(3),
        column = new Float32Array(2);
    explorer.addRow(layer, 0, 0, 1, row);
    explorer.addRow(layer, 0, 1, 1, signed);
    explorer.addColumn(layer, 0, 2, 1, column);
    assert.deepEqual([...row], [0.5, 0, Math.fround(Math.fround(0.04) * 0.5)]);
    assert.deepEqual([...signed], [-2, 0, 2]);
    assert.deepEqual([...column], [row[2], signed[2]]);
});

test("keys move inside the grid and stop at its edge", () => {
    const step = (token, key, has = true) => explorer.step(token, key, [6, 8], has);
    assert.deepEqual(
        ["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"].map((key) => step(9, key)),
        [10, 8, 17, 1],
    );
    assert.deepEqual(
        [step(7, "ArrowRight"), step(8, "ArrowLeft"), step(47, "ArrowDown"), step(3, "ArrowUp")],
        [7, 8, 47, 3],
    );
    assert.deepEqual(
        [step(9, "Home"), step(9, "c"), step(9, "c", false), step("cls", "ArrowUp")],
        ["cls", "cls", 28, 28],
    );
    assert.equal(step(9, "x"), undefined);
});

// The table that Python is held to as well, by test_explorer_js.py: a section has the name of Python's
// function.
const numbered = (values) => Float32Array.from(values, (value) => value ?? NaN);
const covered = ({ truth, grid }) => explorer.coverage(truth.flat(), truth.length, truth[0].length, grid);
const checks = {
    keep_mass: ({ values, keep, kept }) =>
        assert.deepEqual([...explorer.keepMass(numbered(values), keep)], kept),
    iou: (line) => assert.equal(explorer.iou(line.kept, covered(line)), line.iou),
    share_on: (line) => assert.equal(explorer.shareOn(numbered(line.values), covered(line)), line.share),
    spread: ({ weights, bits }) => assert.ok(Math.abs(explorer.spread(weights) - bits) < 1e-12),
    moved: ({ token, old, new: grid, moved }) => assert.equal(explorer.moved(token, old, grid), moved),
    percent: ({ share, text }) => assert.equal(explorer.percent(share), text),
};
const table = JSON.parse(readFileSync(new URL("explorer_cases.json", import.meta.url)));
assert.deepEqual(Object.keys(table), Object.keys(checks));
for (const [section, lines] of Object.entries(table))
    for (const line of lines) test(`${section}: ${line.name}`, () => checks[section](line));

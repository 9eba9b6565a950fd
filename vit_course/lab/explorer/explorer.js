// The attention explorer in the browser: one module without imports, hosted by anywidget in a notebook and by
// page.py in a page of its own. First the pure functions, which node tests without a browser; then the
// drawing. The sentences are those of words.py. Formatted by prettier (--print-width 110 --tab-width 4).

const NEGATIVE = [213, 94, 0]; // orange (Okabe and Ito), and a dash on it for those who see no colour
const SQUARES = Float32Array.from({ length: 256 }, (_, code) => (code / 255) ** 2);
const SIGNED = Float32Array.from({ length: 256 }, (_, code) => (code - 128) / 127);
export const DRAWING = "vit-explorer-draw"; // its times stand under this name in the browser's timeline
const VEIL = 0xa5000000; // black, two thirds opaque: alpha is the highest byte
export const DEFAULT_MASS = 0.6;

// ---- the payload -----------------------------------------------------------------------------------------

/** The description and its bytes (a DataView) as models, layers and pictures that look into those bytes. */
export function openPayload(meta, data) {
    if (data.byteLength !== meta.bytes)
        throw new Error(`the payload has ${data.byteLength} bytes, its description says ${meta.bytes}`);
    let bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    if (bytes.byteOffset % 4) bytes = bytes.slice(); // float32 views must begin at a multiple of four
    const { height, width, names } = meta.images;
    const count = names.length;
    const view = (Kind, offset, length) => new Kind(bytes.buffer, bytes.byteOffset + offset, length);
    const panels = meta.panels.map((panel) => ({
        name: panel.name,
        layers: panel.layers.map((layer) => {
            const rows = count * layer.windows * layer.heads * layer.queries;
            const members =
                layer.members === null ? null : view(Int32Array, layer.members, layer.windows * layer.keys);
            const slots = members && Int32Array.from(members);
            members?.forEach((cell, slot) => (slots[cell] = slot));
            return {
                ...layer,
                members,
                slots,
                scales: view(Float32Array, layer.scales, rows),
                codes: view(Uint8Array, layer.codes, rows * layer.keys),
            };
        }),
    }));
    const slice = (start, size) => names.map((_, image) => view(Uint8Array, start + image * size, size));
    return {
        names,
        height,
        width,
        panels,
        pixels: slice(meta.images.pixels, height * width * 3),
        masks: meta.masks === null ? null : slice(meta.masks, height * width),
        colours: view(Uint8Array, meta.colours, 768),
    };
}

/** Number of the first row of a layer's matrix: for one picture (or window of it) and head. */
const firstRow = (layer, image, window, head) =>
    ((image * layer.windows + window) * layer.heads + head) * layer.queries;

/** Adds `share` times row `query` of a matrix to `out` (keys). */
export function addRow(layer, first, query, share, out) {
    const scale = layer.scales[first + query],
        table = scale < 0 ? SIGNED : SQUARES,
        factor = Math.abs(scale) * share;
    for (let key = 0, at = (first + query) * layer.keys; key < layer.keys; key++, at++)
        out[key] += table[layer.codes[at]] * factor;
}

/** Adds `share` times column `key` of a matrix to `out` (queries). */
export function addColumn(layer, first, key, share, out) {
    for (let query = 0, at = first * layer.keys + key; query < layer.queries; query++, at += layer.keys) {
        const scale = layer.scales[first + query],
            table = scale < 0 ? SIGNED : SQUARES;
        out[query] += table[layer.codes[at]] * Math.abs(scale) * share;
    }
}

/** Row or column `place` of one head, or of the mean of all. */
function weightsOf(layer, image, window, head, place, direction) {
    const out = new Float32Array(direction === "query" ? layer.keys : layer.queries);
    const add = direction === "query" ? addRow : addColumn;
    const [from, to] = head === "mean" ? [0, layer.heads] : [head, head + 1];
    for (let each = from; each < to; each++)
        add(layer, firstRow(layer, image, window, each), place, 1 / (to - from), out);
    return out;
}

/** The mean over heads as a matrix with rows that sum to one, half of it the token itself (Abnar and Zuidema
 * 2020); kept for the next time. */
function mixing(layer, image) {
    layer.mixing ??= new Map();
    if (!layer.mixing.has(image)) {
        const n = layer.keys,
            matrix = new Float32Array(n * n);
        for (let query = 0; query < n; query++) {
            const row = matrix.subarray(query * n, (query + 1) * n);
            for (let head = 0; head < layer.heads; head++)
                addRow(layer, firstRow(layer, image, 0, head), query, 0.5 / layer.heads, row);
            row[query] += 0.5;
            const sum = row.reduce((total, value) => total + value, 0);
            for (let key = 0; key < n; key++) row[key] /= sum;
        }
        layer.mixing.set(image, matrix);
    }
    return layer.mixing.get(image);
}

/** Row (query) or column (key) `place` of the rollout up to layer `number`, without the whole product. */
export function rolloutOf(panel, number, image, place, direction) {
    const layers = panel.layers.slice(0, number + 1).filter((layer) => layer.kind === "global");
    if (direction === "query") layers.reverse(); // a row meets the last layer first, a column the first
    const n = layers[0].keys;
    let flow = new Float32Array(n);
    flow[place] = 1;
    for (const layer of layers) {
        const matrix = mixing(layer, image),
            next = new Float32Array(n);
        for (let query = 0, at = 0; query < n; query++) {
            if (direction === "query") {
                const share = flow[query];
                for (let key = 0; key < n; key++, at++) next[key] += share * matrix[at];
            } else {
                let sum = 0;
                for (let key = 0; key < n; key++, at++) sum += matrix[at] * flow[key];
                next[query] = sum;
            }
        }
        flow = next;
    }
    return flow;
}

// ---- views: as in views.py -------------------------------------------------------------------------------

/** The patch in the middle of a grid [rows, columns], in reading order. */
export const middle = ([rows, columns]) => Math.floor(rows / 2) * columns + Math.floor(columns / 2);

/** The patch of a new grid in which the centre of a patch of an old grid lies. */
export function moved(token, [oldRows, oldColumns], [rows, columns]) {
    const row = Math.floor(token / oldColumns),
        column = token % oldColumns;
    return (
        Math.floor(((2 * row + 1) * rows) / (2 * oldRows)) * columns +
        Math.floor(((2 * column + 1) * columns) / (2 * oldColumns))
    );
}

/** The layer of a model of `count` layers that stands as deep as layer `number` of a model of `of` layers. */
export const matching = (number, count, of) =>
    count === of ? number : Math.floor((2 * number * (count - 1) + of - 1) / Math.max(2 * (of - 1), 1));

/** What a layer shows for { image, head, token, direction }: values for each patch (NaN outside a window),
 * prefix for class tokens. */
export function look(panel, number, { image, head, token, direction }) {
    const layer = panel.layers[number],
        { kind, prefix } = layer;
    if ((head === "rollout" && !layer.rolls) || (typeof head === "number" && head >= layer.heads))
        head = "mean";
    const pointed = kind === "class" && token !== "cls" ? token : null;
    if (kind === "class") [token, direction] = ["cls", "query"];
    else if (token === "cls" && !prefix) token = middle(layer.grid);
    const view = {
        layer,
        number,
        head,
        token,
        direction,
        values: new Float32Array(0),
        prefix: [],
        pointed,
        matrix: null,
        aside: -1,
    };
    if (kind === "channel") {
        view.matrix = new Float32Array(layer.queries * layer.keys);
        for (let query = 0; query < layer.queries; query++)
            view.matrix.set(weightsOf(layer, image, 0, head, query, "query"), query * layer.keys);
    } else if (kind === "window") {
        const window = Math.floor(layer.slots[token] / layer.keys);
        const weights = weightsOf(layer, image, window, head, layer.slots[token] % layer.keys, direction);
        view.values = new Float32Array(layer.grid[0] * layer.grid[1]).fill(NaN);
        weights.forEach((weight, slot) => (view.values[layer.members[window * layer.keys + slot]] = weight));
    } else {
        const place = token === "cls" ? 0 : prefix + token;
        const weights =
            head === "rollout"
                ? rolloutOf(panel, number, image, place, direction)
                : weightsOf(layer, image, 0, head, place, direction);
        view.values = weights.subarray(prefix);
        view.prefix = [...weights.subarray(0, prefix)];
        // In a rollout the token itself would outshine all others.
        if (head === "rollout" && token !== "cls" && view.values.length > 1) view.aside = token;
    }
    return view;
}

/** The fewest patches that hold the share `keep` of the positive weight, as zeros and ones. A share that is
 * reached exactly is reached, whatever the last bit says, as in evaluation.py. */
export function keepMass(values, keep) {
    const kept = new Uint8Array(values.length);
    const order = [...values.keys()]
        .filter((cell) => values[cell] > 0)
        .sort((a, b) => values[b] - values[a] || a - b);
    const target = (keep - 1e-6) * order.reduce((sum, cell) => sum + values[cell], 0);
    let before = 0;
    for (const cell of order) {
        if (before >= target) break;
        kept[cell] = 1;
        before += values[cell];
    }
    return kept;
}

/** For each patch of a grid, how many pixels it has and how many of them a true mask covers; and how many the
 * mask has in all. */
export function coverage(mask, height, width, [rows, columns]) {
    const area = new Float32Array(rows * columns),
        covered = new Float32Array(rows * columns);
    let total = 0;
    for (let y = 0; y < height; y++)
        for (let x = 0; x < width; x++) {
            const cell = Math.floor((y * rows) / height) * columns + Math.floor((x * columns) / width),
                inside = mask[y * width + x];
            area[cell] += 1;
            covered[cell] += inside;
            total += inside;
        }
    return { area, covered, total, pixels: height * width };
}

/** Area in both over area in either, of patches kept and a true mask; two empty masks agree. */
export function iou(kept, { area, covered, total }) {
    let both = 0,
        found = 0;
    kept.forEach((is, cell) => is && ((both += covered[cell]), (found += area[cell])));
    const either = found + total - both;
    return either ? both / either : 1;
}

/** The share of the positive weight that falls on a true mask. */
export function shareOn(values, { area, covered }) {
    let on = 0,
        all = 0;
    values.forEach(
        (value, cell) =>
            value > 0 && ((on += (value * covered[cell]) / Math.max(area[cell], 1)), (all += value)),
    );
    return on / Math.max(all, Number.MIN_VALUE);
}

/** The entropy of absolute weights as shares, in bits. */
export function spread(weights) {
    let all = 0,
        logs = 0;
    for (const weight of weights) {
        const size = Math.abs(weight);
        all += size;
        if (size) logs += size * Math.log2(size);
    }
    return all ? Math.log2(all) - logs / all : 0;
}

/** The patch with the largest weight, whatever its sign; one patch may be left aside. */
export function strongest(values, aside = -1) {
    let best = -1,
        largest = -1;
    for (let cell = 0; cell < values.length; cell++) {
        const size = Math.abs(values[cell]); // NaN is larger than nothing
        if (size > largest && cell !== aside) [best, largest] = [cell, size];
    }
    return best;
}

/** The token to which a key moves, or undefined for a key that moves nowhere. */
export function step(token, key, [rows, columns], hasClassToken) {
    if (key === "Home" || key === "c") return hasClassToken ? "cls" : middle([rows, columns]);
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[key];
    if (!move) return undefined;
    if (token === "cls") return middle([rows, columns]);
    const row = Math.floor(token / columns) + move[0],
        column = (token % columns) + move[1];
    return Math.min(Math.max(row, 0), rows - 1) * columns + Math.min(Math.max(column, 0), columns - 1);
}

// ---- words: as in words.py -------------------------------------------------------------------------------

export function percent(share) {
    const text = (100 * share).toFixed(Math.abs(share) < 0.01 ? 2 : 1);
    return `${Number(text) === 0 ? "0" : text.replace("-", "−")} %`;
}

/** A token's name: its number, row and column, all counted from 0. */
export const place = (token, [, columns]) =>
    token === "cls"
        ? "the class token"
        : `patch ${token} (row ${Math.floor(token / columns)}, column ${token % columns})`;

const capital = (text) => text[0].toUpperCase() + text.slice(1);
const total = (numbers) => numbers.reduce((sum, number) => sum + number, 0);

/** A view in sentences. truth: what coverage() gives for the true mask, or null. */
export function describe(view, mass, truth) {
    if (view.matrix) return describeChannels(view);
    const weights = [...view.prefix, ...view.values].filter((value) => !Number.isNaN(value));
    const sentences = [
        describeStrongest(view, weights),
        describeOthers(view, weights),
        describeSums(view, weights),
    ];
    if (mass) sentences.push(describeMask(view, weights, mass, truth));
    if (truth && view.values.some((value) => value > 0)) sentences.push(describeTruth(view, weights, truth));
    return sentences.filter(Boolean).join(" ");
}

function describeStrongest({ layer, number, head, token, direction, values, pointed, aside }, weights) {
    const best = strongest(values, aside),
        value = values[best];
    const whom = best === token ? "itself" : place(best, layer.grid);
    const times = (Math.abs(value) * weights.length) / (total(weights.map(Math.abs)) || 1);
    const mean = weights.some((weight) => weight < 0) ? "the mean size" : "the mean";
    const howMuch = `${percent(value)}, ${times.toFixed(1)} times ${mean}.`;
    let who = place(token, layer.grid);
    if (layer.kind === "class") {
        const only = "The class token is the only query in this layer.";
        const sentence = `${only} It looks most at ${whom}: ${howMuch}`;
        return pointed === null
            ? sentence
            : `${sentence} ${capital(place(pointed, layer.grid))} gets ${percent(values[pointed])}.`;
    }
    if (head === "rollout") {
        const verb = direction === "query" ? "takes most from" : "gives most to";
        const apart = aside < 0 ? "" : ", apart from itself";
        return `Through layers 0 to ${number}, ${who} ${verb} ${whom}${apart}: ${howMuch}`;
    }
    if (layer.kind === "window") who = `among the ${weights.length} patches of its window (outlined), ${who}`;
    return direction === "query"
        ? `${capital(who)} looks most at ${whom}: ${howMuch}`
        : `${capital(who)} is looked at most by ${whom}, with ${howMuch}`;
}

function describeOthers({ token, direction, values, prefix, aside }, weights) {
    const parts = [],
        more = prefix.length - 1;
    if (prefix.length) parts.push(`${token === "cls" ? "itself" : "class token"} ${percent(prefix[0])}`);
    if (more > 0)
        parts.push(`${more} more prefix token${more > 1 ? "s" : ""} ${percent(total(prefix.slice(1)))}`);
    if (token !== "cls" && strongest(values, aside) !== token) parts.push(`itself ${percent(values[token])}`);
    if (direction === "query")
        parts.push(`spread ${spread(weights).toFixed(1)} of ${Math.log2(weights.length).toFixed(1)} bits`);
    else parts.push(`mean ${percent(total(weights) / weights.length)}`);
    return capital(parts.join("; ")) + ".";
}

function describeSums({ direction }, weights) {
    const sentences = [],
        sum = total(weights),
        negative = weights.filter((weight) => weight < 0);
    if (direction === "query" && Math.abs(sum - 1) > 0.005)
        sentences.push(`The weights add up to ${percent(sum)}.`);
    if (negative.length)
        sentences.push(`Negative weights (orange, with a dash) add up to ${percent(total(negative))}.`);
    return sentences.join(" ");
}

const positive = (weights) => (weights.some((weight) => weight < 0) ? "positive weight" : "weight");

function describeTruth({ values }, weights, truth) {
    const share = percent(shareOn(values, truth)),
        area = percent(truth.total / truth.pixels);
    const gets = `${share} of the ${positive(weights)} on patches`;
    return `The true object gets ${gets} and covers ${area} of the picture.`;
}

function describeMask({ values }, weights, mass, truth) {
    const kept = keepMass(values, mass);
    const score = truth ? `; IoU with the true mask ${iou(kept, truth).toFixed(2)}` : "";
    const patches = `the ${total([...kept])} of ${kept.length} patches`;
    const share = `${(100 * mass).toFixed(0)} % of the ${positive(weights)}`;
    return `The mask keeps ${patches} that hold ${share}${score}.`;
}

function describeChannels({ layer, head, matrix }) {
    const size = layer.keys,
        best = strongest(matrix);
    const whose = head === "mean" ? `the mean of ${layer.heads} heads` : `head ${head}`;
    return (
        "This layer compares channels, not patches, so there is no map on the picture. " +
        `The matrix shows, for ${whose}, what each of ${size} channels (rows) takes from each (columns): ` +
        `most is ${percent(matrix[best])}, channel ${Math.floor(best / size)} from channel ${best % size}.`
    );
}

// ---- drawing ---------------------------------------------------------------------------------------------

/** An element with attributes; a function as attribute handles the event of that name. */
function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes))
        if (typeof value === "function") made.addEventListener(name, value);
        else if (value !== null) made.setAttribute(name, value);
    made.append(...children);
    return made;
}

/** The largest size of a value; one patch may be left aside. */
const largestOf = (values, aside = -1) => Math.abs(values[strongest(values, aside)]);

/** The 256 colours of a scale whose opacity follows the weight, then 256 for negative weights, then both
 * without transparency. */
function inks(colours) {
    const bytes = new Uint8ClampedArray(4 * 1024);
    for (let shade = 0, at = 0; at < bytes.length; shade = (shade + 1) % 256, at += 4) {
        bytes.set(at & 1024 ? NEGATIVE : colours.subarray(3 * shade, 3 * shade + 3), at);
        bytes[at + 3] = at < 2048 ? 0.9 * shade : 255;
    }
    return new Uint32Array(bytes.buffer);
}

/** Weights as colours, into a canvas with one pixel for each. solid: without transparency. aside: a patch
 * that may exceed the scale. */
function paint(values, ink, target, { solid = false, aside = -1 } = {}) {
    const largest = largestOf(values, aside) || 1,
        from = solid ? 512 : 0,
        pixels = target.pixels;
    for (let cell = 0; cell < values.length; cell++) {
        const value = values[cell],
            shade = Math.min(Math.round((255 * Math.abs(value)) / largest), 255);
        pixels[cell] = Number.isNaN(value) ? 0 : ink[from + (value < 0 ? 256 : 0) + shade];
    }
    target.context.putImageData(target.picture, 0, 0);
}

/** A small canvas whose pixels, each a 32-bit number, are set at once and drawn larger. */
function pixelCanvas(width, height) {
    const canvas = element("canvas", { width, height, "aria-hidden": "true" }),
        context = canvas.getContext("2d");
    const picture = context.createImageData(width, height);
    return { canvas, context, picture, pixels: new Uint32Array(picture.data.buffer) };
}

/** The outline, in coordinates of cells, of those for which `inside` is true: edges between inside and
 * outside. */
function outlineOf([rows, columns], inside) {
    const path = new Path2D(),
        is = (row, column) =>
            row >= 0 && row < rows && column >= 0 && column < columns && inside(row * columns + column);
    const edge = (x0, y0, x1, y1) => (path.moveTo(x0, y0), path.lineTo(x1, y1));
    for (let row = 0; row < rows; row++)
        for (let column = 0; column < columns; column++) {
            if (!is(row, column)) continue;
            if (!is(row - 1, column)) edge(column, row, column + 1, row);
            if (!is(row + 1, column)) edge(column, row + 1, column + 1, row + 1);
            if (!is(row, column - 1)) edge(column, row, column, row + 1);
            if (!is(row, column + 1)) edge(column + 1, row, column + 1, row + 1);
        }
    return path;
}

/** A dash in each cell with a negative value. Coordinates in cells. */
function dashesOf([, columns], values) {
    const path = new Path2D();
    values.forEach((value, cell) => {
        if (!(value < 0)) return;
        path.moveTo((cell % columns) + 0.3, Math.floor(cell / columns) + 0.5);
        path.lineTo((cell % columns) + 0.7, Math.floor(cell / columns) + 0.5);
    });
    return path;
}

const KEYS = [
    ["← ↑ ↓ →", "move over the patches"],
    ["Home or c", "class token"],
    ["Enter or click", "keep this patch: Python reads it as .token"],
    ["[ and ]", "layer before, after"],
    [", and .", "head before, after"],
    ["s", "swap: looks at, is looked at"],
    ["m", "mask on, off"],
    ["Page up, down", "picture before, after"],
    ["?", "these keys"],
    ["Escape", "leave"],
];

function render({ model, el }) {
    const payload = openPayload(model.get("_meta"), model.get("_data"));
    const { panels, colours, height, width } = payload;
    const pictures = payload.pixels.map((colour) => {
        const { canvas, context, picture } = pixelCanvas(width, height);
        picture.data.fill(255);
        for (let from = 0, to = 0; from < colour.length; from++, to++) {
            picture.data[to] = colour[from];
            if (from % 3 === 2) to++; // opaque
        }
        context.putImageData(picture, 0, 0);
        return canvas;
    });
    const ink = inks(colours);
    const trueOutlines = new Map(),
        coverages = new Map(); // made when first needed
    let cursor = null; // the patch under the mouse or the keys, until they leave; null: the one that was kept
    let pointedChannel = null;

    const get = (name) => model.get(name);
    const first = () => panels[0].layers[get("layer")];
    const shown = () => {
        const token = cursor ?? get("token"),
            { grid, prefix } = first();
        if (token === "cls") return prefix ? token : middle(grid);
        // Python's choice of a layer may come before that of its token.
        return Math.min(token, grid[0] * grid[1] - 1);
    };

    /** Makes a choice: draws it, and tells the kernel in one message. */
    function choose(choices) {
        const changed = Object.entries(choices).filter(([name, value]) => get(name) !== value);
        if (!changed.length) return;
        for (const [name, value] of changed) model.set(name, value);
        model.save_changes();
    }

    function chooseLayer(number) {
        if (number < 0 || number >= panels[0].layers.length) return;
        const layer = panels[0].layers[number],
            token = get("token"),
            head = get("head"),
            choices = { layer: number };
        const same = String(layer.grid) === String(first().grid);
        if (!same) cursor = null;
        if (token !== "cls" && !same) choices.token = moved(token, first().grid, layer.grid);
        if ((head === "rollout" && !layer.rolls) || (typeof head === "number" && head >= layer.heads))
            choices.head = "mean";
        choose(choices);
    }

    const headChoices = () => [
        "mean",
        ...(first().rolls ? ["rollout"] : []),
        ...Array.from({ length: first().heads }, (_, head) => head),
    ];

    // ---- elements

    const control = (label, child) =>
        element("label", { class: "vx-control" }, element("span", {}, label), child);
    const option = (value, text) => element("option", { value }, text);
    const imageSelect = element(
        "select",
        { "data-role": "image", change: () => choose({ image: Number(imageSelect.value) }) },
        ...payload.names.map((name, number) =>
            option(number, String(name) === String(number) ? name : `${number} · ${name}`),
        ),
    );
    const layerSelect = element(
        "select",
        { "data-role": "layer", change: () => chooseLayer(Number(layerSelect.value)) },
        ...panels[0].layers.map((layer, number) =>
            option(number, `${number} · ${layer.name}${layer.kind === "global" ? "" : ` (${layer.kind})`}`),
        ),
    );
    const headSelect = element("select", {
        "data-role": "head",
        change: () =>
            choose({ head: /^\d+$/.test(headSelect.value) ? Number(headSelect.value) : headSelect.value }),
    });
    const directionSelect = element(
        "select",
        { "data-role": "direction", change: () => choose({ direction: directionSelect.value }) },
        option("query", "looks at"),
        option("key", "is looked at by"),
    );
    const massValue = element("output", { class: "vx-mass" });
    const massInput = element("input", {
        "data-role": "mass",
        type: "range",
        min: 0,
        max: 0.95,
        step: 0.05,
        input: () => model.set("mass", Number(massInput.value)),
        change: () => model.save_changes(),
    });
    const classButton = element(
        "button",
        {
            "data-role": "class-token",
            type: "button",
            click: () => ((cursor = null), choose({ token: "cls" })),
        },
        "Class token",
    );
    const helpButton = element(
        "button",
        {
            "data-role": "help",
            type: "button",
            "aria-expanded": "false",
            "aria-label": "keys",
            click: toggleHelp,
        },
        "?",
    );
    const help = element(
        "dl",
        { class: "vx-help", hidden: "" },
        ...KEYS.flatMap(([key, what]) => [element("dt", {}, key), element("dd", {}, what)]),
    );

    const stages = panels.map((panel, index) => {
        const canvas = element("canvas", {
            "data-panel": index,
            role: "img",
            "aria-label": `picture under the attention of ${panel.name}`,
            pointermove: (event) => point(event, index),
            pointerdown: (event) => point(event, index),
            pointerleave: () => hover(null),
            click: (event) => {
                point(event, index);
                keep();
                root.focus({ preventScroll: true });
            },
        });
        const bar = pixelCanvas(256, 1);
        bar.canvas.className = "vx-bar";
        const most = element("span");
        const heads = element("div", {
            class: "vx-heads",
            role: "group",
            "aria-label": `heads of ${panel.name}`,
        });
        const said = element("span"),
            named = panels.length > 1;
        const stage = element(
            "div",
            { class: "vx-stage" },
            ...(named ? [element("div", { class: "vx-name" }, panel.name)] : []),
            canvas,
            element("div", { class: "vx-scale" }, "0 %", bar.canvas, most),
        );
        return {
            panel,
            canvas,
            bar,
            most,
            heads,
            said,
            thumbs: [],
            layer: null,
            whole: element("div", { class: "vx-panel" }, stage, heads),
            paragraph: element("p", {}, ...(named ? [element("strong", {}, `${panel.name}: `)] : []), said),
        };
    });
    const words = element(
        "div",
        { "data-role": "words", class: "vx-words", "aria-live": "polite" },
        ...stages.map(({ paragraph }) => paragraph),
    );
    const root = element(
        "div",
        {
            class: "vit-explorer",
            tabindex: 0,
            role: "application",
            "data-lm-suppress-shortcuts": "true",
            "data-panels": panels.length,
            "aria-label":
                "Attention explorer: arrow keys move over the patches, question mark lists the keys",
            keydown: press,
        },
        element(
            "div",
            { class: "vx-controls" },
            ...(pictures.length > 1 ? [control("Picture", imageSelect)] : []),
            control("Layer", layerSelect),
            control("Head", headSelect),
            control("The patch", directionSelect),
            element(
                "div",
                { class: "vx-group" },
                control("Mask", element("span", { class: "vx-range" }, massInput, massValue)),
                classButton,
                helpButton,
            ),
        ),
        element("div", { class: "vx-body" }, ...stages.map(({ whole }) => whole), words),
        element(
            "div",
            { class: "vx-hint" },
            "Move over the picture. A click keeps a patch, dashed from then on. The key ? lists the keys.",
        ),
        help,
    );
    for (const { canvas } of stages) canvas.style.aspectRatio = `${width} / ${height}`;

    // ---- what the reader does

    function hover(token) {
        if (token === cursor) return;
        cursor = token;
        draw();
    }

    function point(event, index) {
        const { layers } = panels[index],
            { layer } = stages[index];
        const box = stages[index].canvas.getBoundingClientRect();
        const x = (event.clientX - box.left) / box.width,
            y = (event.clientY - box.top) / box.height;
        if (!(x >= 0 && x < 1 && y >= 0 && y < 1) || layer.kind === "channel") return;
        const [rows, columns] = layer.grid;
        hover(Math.floor(y * rows) * columns + Math.floor(x * columns));
    }

    /** Keeps the patch under the mouse or the keys: the one message that Python gets. */
    const keep = () => cursor !== null && choose({ token: cursor });

    function toggleHelp() {
        help.hidden = !help.hidden;
        helpButton.setAttribute("aria-expanded", String(!help.hidden));
    }

    function press(event) {
        event.stopPropagation(); // no key of ours reaches the notebook
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        const { key, target } = event,
            next = (list, value, by) => list[list.indexOf(value) + by];
        const onControl = target !== root;
        if (
            onControl &&
            key !== "Escape" &&
            (/^(Arrow|Home|Enter|Page)/.test(key) || target.tagName === "SELECT")
        )
            return; // the control's own keys
        const to = step(shown(), key, first().grid, first().prefix > 0);
        if (to !== undefined) hover(to);
        else if (key === "Enter") keep();
        else if (key === "[" || key === "]") chooseLayer(get("layer") + (key === "]" ? 1 : -1));
        else if (key === "," || key === ".") {
            const head = next(headChoices(), get("head"), key === "." ? 1 : -1);
            if (head !== undefined) choose({ head });
        } else if (key === "s") choose({ direction: get("direction") === "query" ? "key" : "query" });
        else if (key === "m") choose({ mass: get("mass") ? 0 : DEFAULT_MASS });
        else if (key === "PageUp" || key === "PageDown") {
            const image = get("image") + (key === "PageDown" ? 1 : -1);
            if (image >= 0 && image < pictures.length) choose({ image });
        } else if (key === "?") toggleHelp();
        else if (key === "Escape") {
            if (!help.hidden) toggleHelp();
            else if (onControl) root.focus();
            else {
                hover(null);
                root.blur();
                root.parentElement?.closest("[tabindex]")?.focus();
            }
        } else return;
        event.preventDefault();
    }

    // ---- drawing

    function truthOf(image, layer) {
        if (!payload.masks || layer.kind === "channel") return null;
        const key = `${image} ${layer.grid}`;
        if (!coverages.has(key))
            coverages.set(key, coverage(payload.masks[image], height, width, layer.grid));
        return coverages.get(key);
    }

    function trueOutline(image) {
        if (!trueOutlines.has(image))
            trueOutlines.set(
                image,
                outlineOf([height, width], (pixel) => payload.masks[image][pixel]),
            );
        return trueOutlines.get(image);
    }

    /** Strokes a path in coordinates of cells, each style a [colour, CSS pixels, dash] over the one before.
     * */
    function stroke(context, path, [rows, columns], ...styles) {
        const { width: w, height: h } = context.canvas,
            ratio = devicePixelRatio || 1,
            scaled = new Path2D();
        scaled.addPath(path, new DOMMatrix([w / columns, 0, 0, h / rows, 0, 0]));
        for (const [colour, size, dash] of styles) {
            context.strokeStyle = colour;
            context.lineWidth = size * ratio;
            context.setLineDash((dash ?? []).map((length) => length * ratio));
            context.stroke(scaled);
        }
        context.setLineDash([]);
    }

    function frame(context, token, [rows, columns], ...styles) {
        const path = new Path2D();
        path.rect(token % columns, Math.floor(token / columns), 1, 1);
        stroke(context, path, [rows, columns], ...styles);
    }

    function drawStage(at, view, image, mass) {
        const { canvas } = at,
            context = canvas.getContext("2d"),
            { layer, values } = view,
            { width: w, height: h } = canvas;
        context.clearRect(0, 0, w, h);
        if (view.matrix) {
            const side = Math.min(w, h);
            paint(view.matrix, ink, at.map, { solid: true });
            context.imageSmoothingEnabled = false;
            context.drawImage(at.map.canvas, (w - side) / 2, (h - side) / 2, side, side);
            return;
        }
        const [rows, columns] = layer.grid;
        context.imageSmoothingEnabled = width > 128;
        context.drawImage(pictures[image], 0, 0, w, h);
        context.imageSmoothingEnabled = false;
        if (mass) {
            const kept = keepMass(values, mass);
            kept.forEach((is, cell) => (at.map.pixels[cell] = is ? 0 : VEIL));
            at.map.context.putImageData(at.map.picture, 0, 0);
        } else paint(values, ink, at.map, view);
        context.drawImage(at.map.canvas, 0, 0, w, h);
        if (mass)
            stroke(
                context,
                outlineOf(layer.grid, (cell) => at.map.pixels[cell] !== VEIL),
                layer.grid,
                ["#000", 3],
                ["#fde725", 1.5],
            );
        else if (values.some((value) => value < 0))
            stroke(context, dashesOf(layer.grid, values), layer.grid, ["#fff", 1.5]);
        if (layer.kind === "window")
            stroke(
                context,
                outlineOf(layer.grid, (cell) => !Number.isNaN(values[cell])),
                layer.grid,
                ["rgba(0,0,0,.6)", 3],
                ["#fff", 1.5],
            );
        if (payload.masks)
            stroke(context, trueOutline(image), [height, width], ["#000", 3], ["#fff", 1.5, [5, 4]]);
        const token = view.pointed ?? view.token,
            kept = get("token");
        if (kept !== "cls" && kept !== token)
            frame(context, kept, layer.grid, ["#000", 3], ["#fff", 1.5, [3, 3]]);
        if (token !== "cls") frame(context, token, layer.grid, ["#000", 4], ["#fff", 2]);
    }

    function drawHeads(at, index, view, choice) {
        for (const { head, map, button } of at.thumbs) {
            const small = head === view.head ? view : look(panels[index], view.number, { ...choice, head });
            paint(small.matrix ?? small.values, ink, map, { solid: true });
            button.setAttribute("aria-pressed", String(head === view.head));
        }
    }

    /** New thumbnails where the layer has other heads or another grid. */
    function prepareHeads(at, number) {
        const layer = at.panel.layers[number];
        if (at.layer === layer) return;
        at.layer = layer;
        const [rows, columns] = layer.kind === "channel" ? [layer.queries, layer.keys] : layer.grid;
        at.map = pixelCanvas(columns, rows);
        paint(
            Float32Array.from({ length: 256 }, (_, shade) => shade),
            ink,
            at.bar,
            { solid: layer.kind === "channel" },
        );
        at.thumbs = ["mean", ...Array.from({ length: layer.heads }, (_, head) => head)].map((head) => {
            const map = pixelCanvas(columns, rows);
            const button = element(
                "button",
                {
                    type: "button",
                    "data-head": head,
                    "aria-label": head === "mean" ? "mean of the heads" : `head ${head}`,
                    click: () => choose({ head }),
                },
                map.canvas,
                element("span", {}, head),
            );
            return { head, map, button };
        });
        at.heads.replaceChildren(...at.thumbs.map(({ button }) => button));
    }

    let drawn = 0;
    function draw() {
        const start = performance.now(),
            choice = { image: get("image"), head: get("head"), token: shown(), direction: get("direction") },
            mass = get("mass");
        stages.forEach((at, index) => {
            const number = matching(get("layer"), panels[index].layers.length, panels[0].layers.length);
            prepareHeads(at, number);
            const view = look(panels[index], number, choice);
            drawStage(at, view, choice.image, mass);
            drawHeads(at, index, view, choice);
            const text = describe(view, mass, truthOf(choice.image, at.layer)),
                shownValues = view.matrix ?? view.values;
            at.said.textContent = text.replaceAll(" %", "\u00a0%"); // no line breaks before the sign
            const sign = shownValues.some((value) => value < 0) ? "±" : "";
            at.most.textContent = sign + percent(largestOf(shownValues, view.aside));
        });
        root.dataset.token = choice.token;
        classButton.setAttribute("aria-pressed", String(choice.token === "cls"));
        root.dataset.drawn = ++drawn;
        if (drawn % 1000 === 0) performance.clearMeasures(DRAWING);
        performance.measure(DRAWING, { start });
    }

    /** Brings the controls in line with the choices, then draws. */
    function update() {
        const heads = headChoices().map((head) => [
            String(head),
            typeof head === "number"
                ? `head ${head}`
                : head === "mean"
                  ? `mean of ${first().heads} heads`
                  : "rollout to here",
        ]);
        if (headSelect.dataset.heads !== String(heads)) {
            headSelect.dataset.heads = String(heads);
            headSelect.replaceChildren(...heads.map(([value, text]) => option(value, text)));
        }
        [imageSelect.value, layerSelect.value, headSelect.value] = [get("image"), get("layer"), get("head")];
        [directionSelect.value, massInput.value] = [get("direction"), get("mass")];
        massValue.textContent = get("mass") ? `${Math.round(100 * get("mass"))} %` : "off";
        classButton.disabled = !panels.some(
            ({ layers }, index) =>
                layers[matching(get("layer"), layers.length, panels[0].layers.length)].prefix,
        );
        directionSelect.disabled = first().kind === "class" || first().kind === "channel";
        Object.assign(root.dataset, {
            layer: get("layer"),
            head: get("head"),
            direction: get("direction"),
            image: get("image"),
            mass: get("mass"),
            pinned: get("token"),
        });
        draw();
    }

    function fit() {
        for (const { canvas } of stages) {
            const ratio = devicePixelRatio || 1,
                wide = Math.round((canvas.clientWidth || 320) * ratio);
            canvas.width = wide;
            canvas.height = Math.round((wide * height) / width);
        }
        draw();
    }

    el.append(root);
    const traits = ["image", "layer", "head", "token", "direction", "mass"].map((name) => `change:${name}`);
    model.on("change:token", () => (cursor = null)); // whoever chose last, the reader or Python, is shown
    for (const trait of traits) model.on(trait, update);
    update();
    const observer = new ResizeObserver(fit);
    for (const { canvas } of stages) observer.observe(canvas);
    return () => {
        observer.disconnect();
        for (const trait of traits) model.off(trait, update);
    };
}

export default { render };

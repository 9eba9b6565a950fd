"""One HTML file that holds the explorer with its pictures and weights, and needs no server and no network."""

import base64
import html
import json
import zlib

# What JupyterLab's themes give a notebook, in a page of its own: the same names, light and dark.
STYLE = """
:root {
    color-scheme: light dark;
    --jp-layout-color0: #fff; --jp-layout-color1: #fff; --jp-layout-color2: #f3f4f6;
    --jp-border-color1: #c3c7cd;
    --jp-ui-font-color1: #24292f; --jp-ui-font-color2: #5b6470; --jp-brand-color1: #1769aa;
}
@media (prefers-color-scheme: dark) {
    :root {
        --jp-layout-color0: #111418; --jp-layout-color1: #15191e; --jp-layout-color2: #20262d;
        --jp-border-color1: #46505c;
        --jp-ui-font-color1: #e4e7eb; --jp-ui-font-color2: #a3acb7; --jp-brand-color1: #63b3f0;
    }
}
body { margin: 0; padding: 16px; background: var(--jp-layout-color0); }
main { max-width: 960px; margin: 0 auto; }
"""

# The page's stand-in for the notebook's side of a widget: it keeps the choices and dispatches their changes.
SCRIPT = """
const source = document.getElementById("explorer").textContent;
const explorer = (await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })))).default;
const letters = atob(document.getElementById("data").textContent);
const packed = new Blob([Uint8Array.from(letters, (letter) => letter.charCodeAt(0))]);
const inflated = packed.stream().pipeThrough(new DecompressionStream("deflate"));
const data = await new Response(inflated).arrayBuffer();
const state = { ...JSON.parse(document.getElementById("state").textContent), _data: new DataView(data) };
const events = new EventTarget(), handlers = new Map();
const model = {
    get: (name) => state[name],
    set(name, value) {
        if (state[name] === value) return;
        state[name] = value;
        events.dispatchEvent(new Event(`change:${name}`));
    },
    save_changes() {},
    on(name, handler) {
        handlers.set(handler, () => handler());
        events.addEventListener(name, handlers.get(handler));
    },
    off(name, handler) { events.removeEventListener(name, handlers.get(handler)); },
};
explorer.render({ model, el: document.querySelector("main") });
"""


def page(script: str, style: str, state: dict, data: bytes, picture: bytes, alt: str) -> str:
    """The text of the page.

    Args:
        script, style: explorer.js and explorer.css.
        state: the traits, for JSON.
        data: the payload.
        picture, alt: a PNG and its words, for whoever has no JavaScript.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Attention explorer</title>
<link rel="icon" href="data:,">
<style>{STYLE}{style}</style>
</head>
<body>
<main></main>
<noscript><img alt="{html.escape(alt)}" src="data:image/png;base64,{_base64(picture)}"></noscript>
<script type="text/plain" id="explorer">{script}</script>
<script type="application/json" id="state">{json.dumps(state).replace("<", chr(92) + "u003c")}</script>
<script type="text/plain" id="data">{_base64(zlib.compress(data, 6))}</script>
<script type="module">{SCRIPT}</script>
</body>
</html>
"""


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")

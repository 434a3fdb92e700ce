"""A page that reads its configuration before it can do what its button says.

It measures itself: from the start of the navigation until the page has what it needs, and from a click on the button,
made in the first frame that shows it, to the frame that shows the answer. Where no configuration comes within a second,
the page goes on with what it was built with, as a page should. What a browser measures by itself, the beacon reports.
"""

from __future__ import annotations

__all__ = ["page_html"]

_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Checkout</title><link rel="icon" href="data:,">
<script async src="/beacon/" data-page="/page" data-variant="VARIANT"></script></head>
<body><h1>Your basket</h1><button id="go" type="button">…</button><p id="said" role="status"></p>
<script>
const builtIn = {"checkout.label": "Buy now", "checkout.express": false, "theme": "system"};
const user = new URLSearchParams(location.search).get("user");
const measured = {configured: true};
const patience = new AbortController();
setTimeout(() => patience.abort(), 1000);
const configuration = fetch("/config?user=" + encodeURIComponent(user), {signal: patience.signal})
  .then(answer => answer.ok ? answer.json() : Promise.reject(new Error(answer.status)))
  .then(document => document.values)
  .catch(() => { measured.configured = false; return builtIn; });
configuration.then(values => {
  go.textContent = values["checkout.label"];
  document.documentElement.style.colorScheme = values["theme"] === "system" ? "light dark" : values["theme"];
  measured.ready_milliseconds = performance.now();
});
go.addEventListener("click", async () => {
  const clicked = performance.now();
  const values = await configuration;
  said.textContent = values["checkout.express"] ? "Paid." : "Where shall we send it?";
  requestAnimationFrame(() => setTimeout(() => {
    measured.interaction_milliseconds = performance.now() - clicked;
    window.measured = measured;
  }));
});
requestAnimationFrame(() => go.click());
</script></body></html>
"""


def page_html(variant: str) -> str:
    """The page; its beacon says that it was served by `variant`, a name of letters and `_`."""
    return _HTML.replace("VARIANT", variant)

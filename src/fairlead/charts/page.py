"""A page that is one file: no network, no script, light and dark, fit to print.

A report is mailed, archived and opened in ten years. So its style is inside, named by its hash in a policy that allows
nothing else; whatever text is put into it, no browser runs it.
"""

from __future__ import annotations

import base64
import hashlib
import html

from fairlead.charts.style import STYLESHEET

__all__ = ["page"]

_STYLE = """
:root{color-scheme:light dark}
body{margin:0 auto;max-width:66rem;padding:2rem 1.25rem 4rem;background:var(--chart-surface);color:var(--chart-ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .25rem}
h2{font-size:1.3rem;margin:2.75rem 0 .5rem}
h3{font-size:1.05rem;margin:1.75rem 0 .35rem}
p{margin:.5rem 0;max-width:46rem}
.meta,.note,dd{color:var(--chart-muted)}
.meta{font-size:.9rem}
.verdict{border-left:4px solid var(--chart-series-3);padding:.4rem .9rem;margin:1rem 0}
.verdict.invalid{border-color:var(--chart-series-2)}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}
th,td{padding:.3rem .75rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--chart-grid)}
thead th{color:var(--chart-muted);font-weight:600;border-bottom:1px solid var(--chart-axis)}
th[scope=row]{font-weight:500}
td.number,th.number{text-align:right;padding-left:.75rem}
td.number{white-space:nowrap}
thead th{vertical-align:bottom}
td.number small{color:var(--chart-muted);display:block}
.met{color:var(--chart-series-3);font-weight:600}
.missed{color:var(--chart-series-2);font-weight:600}
.met,.missed{white-space:nowrap}
dt{font-weight:600;margin-top:.6rem}
dd{margin:0}
code{font-size:.85em;word-break:break-all}
figure{margin:1rem 0 1.75rem}
ul{padding-left:1.2rem;max-width:46rem}
@media print{body{padding:0;max-width:none;font-size:11pt}h2,h3{break-after:avoid}figure,tr{break-inside:avoid}}
"""


def page(title: str, body: str) -> str:
    """The page as text. title: plain text. body: HTML, in which the caller has escaped what is not its own.

    >>> page("A & B", "<h1>A &amp; B</h1>").count("A &amp; B")
    2
    """
    style = STYLESHEET + _STYLE
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return "".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; ',
            f"style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'\">",
            f"<title>{html.escape(title)}</title><style>{style}</style></head><body>\n",
            body,
            "</body></html>\n",
        )
    )

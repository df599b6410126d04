"""The style sheet of the page: light or dark as the reader prefers, without external files."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --soft: #59636e; --rule: #d4d9de;
  --c0: #0969c8; --c1: #c2410c; --c2: #1a7f37; --c3: #8250df; --c4: #9a6700; --c5: #bf3989; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14181d; --ink: #e4e8ec; --soft: #9aa5b1; --rule: #3a424b;
    --c0: #5eb0ff; --c1: #ff9a5c; --c2: #5fd07a; --c3: #c3a0ff; --c4: #e3b341; --c5: #ff8ac4; } }
* { box-sizing: border-box; }
body { max-width: 62rem; margin: 0 auto; padding: 2rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin: 2.5rem 0 0.6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 0.3rem; }
p { max-width: 46rem; } .note, figcaption, .facts { color: var(--soft); }
.note { border-left: 3px solid var(--rule); padding-left: 0.8rem; }
figure { margin: 0 0 1rem; } figcaption { font-size: 0.88rem; }
.beside { display: flex; flex-wrap: wrap; gap: 0 2rem; } .beside > * { max-width: 100%; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.4rem 0 1rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
caption { text-align: left; color: var(--soft); padding-bottom: 0.3rem; }
th, td { padding: 0.25rem 1.2rem 0.25rem 0; border-bottom: 1px solid var(--rule); text-align: right;
  vertical-align: top; white-space: pre-line; }
th { font-weight: 600; } th:first-child { text-align: left; } tbody th { font-weight: 400; }
svg { display: block; font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .tick { fill: var(--soft); font-size: 11px; } svg .name { fill: var(--soft); }
svg .figure { font-size: 11px; }
svg .grid { stroke: var(--rule); stroke-width: 1; } svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .dashed { stroke-dasharray: 6 4; } svg .faint { stroke-width: 1; opacity: 0.28; }
svg .cell { stroke: var(--rule); stroke-width: 0.5; }
svg .absent { fill: none; stroke: var(--rule); stroke-dasharray: 2 2; }
svg .c0 { stroke: var(--c0); } svg .c1 { stroke: var(--c1); } svg .c2 { stroke: var(--c2); }
svg .c3 { stroke: var(--c3); } svg .c4 { stroke: var(--c4); } svg .c5 { stroke: var(--c5); }
svg circle.c0 { fill: var(--c0); } svg circle.c1 { fill: var(--c1); } svg circle.c2 { fill: var(--c2); }
svg circle.c3 { fill: var(--c3); } svg circle.c4 { fill: var(--c4); } svg circle.c5 { fill: var(--c5); }
"""


def styled(chart: str) -> str:
    """Return a chart that stands alone: SVG with the page's style inside."""
    return chart.replace(">", f"><style>{STYLE}</style>", 1)

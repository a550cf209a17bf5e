"""The style sheet of the report: one column on a phone, light and dark by the reader's own setting."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --card: #f5f6f8; --line: #d5d9e0; --text: #1b1f27; --faint: #5b6472;
  --good: #14713d; --bad: #b3261e; --skip: #6b7280; --bar: #2f6fb5; --bar-bad: #c2352b; --mark: #1b1f27;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171c; --card: #1e232b; --line: #39414e; --text: #e7eaf0; --faint: #a2abba;
    --good: #63cf93; --bad: #ff8a80; --skip: #9aa3b2; --bar: #6ba6e8; --bar-bad: #ff8a80; --mark: #e7eaf0;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 16px; max-width: 1080px; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.35rem; margin: 0 0 4px; }
h2 { font-size: 1.1rem; margin: 32px 0 8px; }
p { margin: 4px 0 8px; }
a { color: inherit; }
.faint { color: var(--faint); font-size: 0.875rem; }
.good { color: var(--good); } .bad { color: var(--bad); } .skip { color: var(--skip); }
.verdict { border-left: 6px solid; padding: 10px 14px; background: var(--card); border-radius: 4px; }
.verdict.good { border-color: var(--good); } .verdict.bad { border-color: var(--bad); }
.verdict strong { font-size: 1.35rem; display: block; }
.verdict span { color: var(--text); }
.pair { display: grid; gap: 16px; }
@media (min-width: 820px) { .pair { grid-template-columns: 1fr 1fr; } }
figure { margin: 0; }
svg { display: block; width: 100%; max-width: 560px; height: auto; }
svg text { fill: var(--text); font-size: 11px; }
svg .quiet { fill: var(--faint); }
svg .axis { stroke: var(--line); } svg .limit { stroke: var(--mark); stroke-dasharray: 3 2; stroke-width: 2; }
svg .diagonal { stroke: var(--faint); stroke-dasharray: 4 3; }
svg .boundary { stroke: var(--faint); stroke-dasharray: 1 3; }
svg .bar { fill: var(--bar); } svg .bar.bad { fill: var(--bar-bad); }
svg .mark { stroke: var(--mark); stroke-width: 2; }
svg .dot { fill: var(--bar); fill-opacity: 0.55; } svg .dot.bad { fill: var(--bar-bad); fill-opacity: 1; }
details { background: var(--card); border-radius: 4px; margin: 6px 0; padding: 8px 12px; }
summary { cursor: pointer; min-height: 28px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; margin: 8px 0; font-size: 0.9rem; }
dt { color: var(--faint); } dd { margin: 0; font-variant-numeric: tabular-nums; }
ul { margin: 4px 0; padding-left: 20px; }
table { border-collapse: collapse; width: 100%; font-size: 0.875rem; }
th, td { text-align: right; padding: 4px 6px; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
td { font-variant-numeric: tabular-nums; }
th, td:not(:first-child) { overflow-wrap: normal; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; }
.card { background: var(--card); border-radius: 4px; padding: 8px; font-size: 0.8125rem; }
.card img { display: block; width: 100%; height: 150px; object-fit: contain; background: var(--page); }
.card .none { display: grid; place-items: center; height: 150px; color: var(--faint); }
pre { background: var(--card); padding: 10px 12px; white-space: pre-wrap; font-size: 0.8125rem; }
"""

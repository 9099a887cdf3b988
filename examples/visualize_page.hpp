// The page of visualize: a picture, the numbers of the cell below the pointer, and the spread over the channels. It is
// one file that asks for nothing else.
#ifndef MINIMAMBA_EXAMPLES_VISUALIZE_PAGE_HPP
#define MINIMAMBA_EXAMPLES_VISUALIZE_PAGE_HPP

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "visualize_picture.hpp"

namespace visualize {

inline constexpr std::string_view page_style = R"css(
:root { color-scheme: light dark; --page: #fff; --ink: #1d1f24; --soft: #646a75; --line: #e3e5e9; --card: #fff; --accent: #b8451f; --mark: #1d1f24; }
.reach { --accent: #0b6f96; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181c; --ink: #e8eaee; --soft: #9aa1ad; --line: #33373f; --card: #23262c; --accent: #ff8f5a; --mark: #fff; }
  .reach { --accent: #3fc3d6; }
}
body { margin: 0; background: var(--page); color: var(--ink); font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1072px; margin: 0 auto; padding: 12px 16px 40px; }
.scroll { overflow-x: auto; }
.map, .chart { display: block; }
.map { cursor: crosshair; }
.map:focus { outline: none; }
.map:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.mark { fill: none; stroke: var(--mark); stroke-width: 2; pointer-events: none; }
form { display: flex; flex-wrap: wrap; gap: 8px 20px; align-items: center; margin: 8px 0 0 62px; color: var(--soft); }
select { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 2px 6px; }
h2 { font-size: 16px; margin: 22px 0 2px 62px; }
p { margin: 2px 0 6px 62px; color: var(--soft); max-width: 60em; }
.chart text { font-size: 12px; fill: var(--soft); }
.chart .grid { stroke: var(--line); }
.chart .band { fill: var(--accent); stroke: none; }
.chart .line { fill: none; stroke: var(--accent); stroke-width: 2; }
.chart .cursor { stroke: var(--mark); stroke-dasharray: 3 3; }
.chart .name { fill: var(--ink); font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
#tip { position: fixed; z-index: 2; width: max-content; pointer-events: none; background: var(--card); border: 1px solid var(--line); border-radius: 8px; box-shadow: 0 4px 16px #0003; padding: 8px 12px; font-size: 13px; }
#tip code { font: 13px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; background: var(--line); border-radius: 4px; padding: 1px 5px; }
#tip table, details table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
#tip td { padding: 0 14px 0 0; color: var(--soft); }
#tip td + td { text-align: right; padding: 0; }
#tip .shown td { color: var(--ink); font-weight: 600; }
details { margin: 16px 0 0 62px; color: var(--soft); }
details div { max-height: 30em; overflow: auto; margin-top: 8px; }
details th, details td { padding: 1px 12px 1px 0; text-align: right; white-space: pre; }
details th { position: sticky; top: 0; background: var(--page); color: var(--ink); }
)css";

inline constexpr std::string_view page_script = R"js(
'use strict';
{  // not global: browsers have names there
const at = (id) => document.getElementById(id);
const data = JSON.parse(at('data').textContent), count = data.tokens.length, rows = data.layers.length;
const map = document.querySelector('svg.map'), statistics = data.statistics;
const made = (name, attributes, text) => {
  const node = document.createElementNS(map.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
const value = (s, row, token) => statistics[s].values[row * count + token];
const words = (x) => x === null ? 'beyond the prompt' : x + (x === 1 ? data.unit.replace(/s$/, '') : data.unit);
const place = (scale, x) => Math.min(1, Math.max(0, Math.log(Math.max(x, scale.low) / scale.low) / Math.log(scale.high / scale.low)));

// The cells come line by line, in each line layer by layer.
const cells = Array.from({length: rows}, () => []), where = new Map();
map.querySelectorAll('g.row').forEach((group, i) => cells[i % rows].push(...group.children));
cells.forEach((row, r) => row.forEach((cell, t) => where.set(cell, [r, t])));
const mark = map.appendChild(made('rect', {class: 'mark', width: 0, height: 0}));
let shown = data.shown, chosen = [0, 0];

function colour() {
  const scale = statistics[shown], legend = map.querySelector('g.legend');
  cells.forEach((row, r) => row.forEach((cell, t) => {
    const x = value(shown, r, t);
    cell.setAttribute('class', x === null ? 'b' : 'c' + Math.min(data.colours - 1, Math.floor(data.colours * place(scale, x))));
  }));
  map.querySelector('.note').textContent = scale.note;
  legend.querySelectorAll('path, text').forEach((node) => node.remove());
  for (const tick of scale.ticks) {
    const x = data.bar.x + data.bar.width * place(scale, tick);
    legend.append(made('path', {class: 'l', d: `M${x} ${data.bar.y + 12}v4`}), made('text', {class: 'm s', x, y: data.bar.y + 28}, tick));
  }
}

function showTip(cell, row, token) {
  const tip = at('tip'), table = document.createElement('table'), name = document.createElement('code');
  name.textContent = data.tokens[token][1];
  statistics.forEach((s, i) => {
    const line = table.insertRow();
    if (i === shown) line.className = 'shown';
    line.insertCell().textContent = s.name;
    line.insertCell().textContent = words(value(i, row, token));
  });
  tip.replaceChildren(name, ` token ${token}, id ${data.tokens[token][0]}, layer ${data.layers[row]}`, table);
  tip.hidden = false;
  const box = cell.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const left = Math.min(box.right + 10, document.documentElement.clientWidth - own.width - 8), below = box.bottom + 10 + own.height < innerHeight;
  tip.style.left = Math.max(8, left) + 'px';
  tip.style.top = Math.max(8, below ? box.bottom + 10 : box.top - own.height - 10) + 'px';
}

function choose(row, token, tip = true) {
  chosen = [row, token];
  const cell = cells[row][token];
  for (const key of ['x', 'y', 'width', 'height']) mark.setAttribute(key, cell.getAttribute(key));
  if (tip) showTip(cell, row, token);
  drawChart();
}
)js";

inline constexpr std::string_view chart_script = R"js(
// The spread of one layer: for each token the quantiles over the channels, as steps.
const chart = at('chart'), left = data.bar.x, wide = map.viewBox.baseVal.width - left - 22, high = 230, top = 12;
const quantiles = [0, 10, 25, 50, 75, 90, 100].map((q) => statistics.findIndex((s) => s.percent === q));
const all = {low: Math.min(...quantiles.map((i) => statistics[i].low)), high: Math.max(...quantiles.map((i) => statistics[i].high))};
const beyond = statistics.some((s) => s.values.includes(null));
const y = (x) => top + high * (x === null ? 0.02 : 1 - place(all, x) * (beyond ? 0.9 : 1));
const x = (token) => left + wide * token / count;
const steps = (s, row, back) => {
  const points = [];
  for (let t = 0; t < count; ++t) points.push([x(t), y(value(s, row, t))], [x(t + 1), y(value(s, row, t))]);
  return (back ? points.reverse() : points).map(([px, py]) => px.toFixed(1) + ' ' + py.toFixed(1)).join('L');
};

function drawChart() {
  const [row, token] = chosen, parts = [];
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((n) => n * wide / count >= 36) || 5000;
  for (let power = Math.ceil(Math.log10(all.low) - 1e-9); Math.pow(10, power) < all.high * 1.001; ++power) {
    const tick = Number('1e' + power), py = y(tick);
    parts.push(made('path', {class: 'grid', d: `M${left} ${py}h${wide}`}), made('text', {x: left - 8, y: py + 4, 'text-anchor': 'end'}, tick));
  }
  if (beyond) parts.push(made('path', {class: 'grid', d: `M${left} ${y(null)}h${wide}`}), made('text', {x: left - 8, y: y(null) + 4, 'text-anchor': 'end'}, 'beyond'));
  [[0, 6, 0.12], [1, 5, 0.2], [2, 4, 0.3]].forEach(([a, b, opacity]) => {
    const d = `M${steps(quantiles[a], row, false)}L${steps(quantiles[b], row, true)}Z`;
    parts.push(made('path', {class: 'band', opacity, d}));
  });
  parts.push(made('path', {class: 'line', d: 'M' + steps(quantiles[3], row, false)}));
  for (let t = 0; t < count; t += every) parts.push(made('text', {x: x(t + 0.5), y: top + high + 18, 'text-anchor': 'middle'}, t));
  const middle = x(token + 0.5), near = middle > left + wide - 90;
  parts.push(made('path', {class: 'cursor', d: `M${middle} ${top}v${high}`}),
             made('text', {class: 'name', x: middle + (near ? -6 : 6), y: top + high - 6, 'text-anchor': near ? 'end' : 'start'}, data.tokens[token][1]));
  chart.setAttribute('viewBox', `0 0 ${map.viewBox.baseVal.width} ${top + high + 26}`);
  chart.setAttribute('width', map.viewBox.baseVal.width);
  chart.replaceChildren(...parts);
  at('of').textContent = data.layers[row];
}

function fillTable() {
  const table = document.createElement('table'), head = table.createTHead().insertRow();
  for (const name of ['token', '', ...data.layers.map((layer) => 'layer ' + layer)]) {
    const cell = head.appendChild(document.createElement('th'));
    cell.textContent = name;
  }
  data.tokens.forEach(([, label], t) => {
    const line = table.insertRow();
    for (const text of [t, label, ...data.layers.map((_, row) => words(value(shown, row, t)))]) line.insertCell().textContent = text;
  });
  at('numbers').replaceChildren(table);
}

statistics.forEach((s, i) => at('statistic').add(new Option(s.name, i, i === shown, i === shown)));
at('statistic').addEventListener('change', () => { shown = Number(at('statistic').value); colour(); if (at('table').open) fillTable(); });
at('table').addEventListener('toggle', () => { if (at('table').open) fillTable(); });
map.addEventListener('pointerover', (event) => { const found = where.get(event.target); if (found) choose(...found); else at('tip').hidden = true; });
map.addEventListener('pointerleave', () => { at('tip').hidden = true; });
map.addEventListener('blur', () => { at('tip').hidden = true; });
map.addEventListener('keydown', (event) => {
  const by = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0]}[event.key];
  if (!by) return;
  event.preventDefault();
  choose(Math.min(rows - 1, Math.max(0, chosen[0] + by[0])), Math.min(count - 1, Math.max(0, chosen[1] + by[1])));
});
map.setAttribute('tabindex', '0');
choose(rows - 1, 0, false);
}
)js";

/// The numbers of the page.
inline std::string page_data(const Quantity& quantity) {
  const auto list = [](const auto& items, const auto& text) {
    std::string all;
    for (const auto& item : items) all += (all.empty() ? "" : ",") + text(item);
    return "[" + all + "]";
  };
  const auto number = [](double value) { return value == beyond ? "null" : digits(value); };
  const auto statistic = [&](const Statistic& own) {
    const Scale scale = Scale::of(own);
    return "{\"name\":" + json_text(own.name) + ",\"note\":" + json_text(note_of(quantity, own)) +
           ",\"percent\":" + std::to_string(own.percent) + ",\"low\":" + digits(scale.low) +
           ",\"high\":" + digits(scale.high) + ",\"ticks\":" + list(scale.ticks(), digits) +
           ",\n\"values\":" + list(own.values, number) + "}";
  };
  return "{\"unit\":" + json_text(quantity.unit) + ",\"colours\":" + std::to_string(colours) +
         ",\"bar\":{\"x\":" + px(Layout::left) + ",\"y\":" + px(Layout::bar_top) + ",\"width\":" + px(Layout::bar) +
         "},\"shown\":" + std::to_string(quantity.shown) +
         ",\n\"layers\":" + list(quantity.layers, [](std::size_t layer) { return std::to_string(layer); }) +
         ",\n\"tokens\":" +
         list(quantity.tokens,
              [](const Label& label) { return "[" + std::to_string(label.id) + "," + json_text(label.text) + "]"; }) +
         ",\n\"statistics\":" + list(quantity.statistics, statistic) + "}";
}

/// The page, which is well-formed XML too.
inline std::string page_html(const Quantity& quantity) {
  return "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
         "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
         "script-src 'unsafe-inline'\"/>\n"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>" +
         escaped(quantity.title) + "</title>\n<style>" + std::string(page_style) + "</style>\n</head>\n<body class=\"" +
         quantity.file + "\">\n<main>\n<div class=\"scroll\">\n" + picture_svg(quantity, false) +
         "</div>\n<form><label>The colour is the <select id=\"statistic\" autocomplete=\"off\"></select> over the " +
         quantity.over +
         "</label><span>Point at a cell, or use the arrow keys.</span></form>\n"
         "<h2>The spread over the " +
         quantity.over +
         ", layer <span id=\"of\"></span></h2>\n"
         "<p>The line is the median. The bands hold the middle 50 %, the middle 80 %, and all of the " +
         quantity.over +
         ". The layer is that of the last cell that was pointed at.</p>\n"
         "<div class=\"scroll\"><svg id=\"chart\" class=\"chart\" role=\"img\" aria-label=\"The spread of one "
         "layer\"></svg></div>\n"
         "<details id=\"table\"><summary>All cells as a table</summary><div id=\"numbers\"></div></details>\n</main>\n"
         "<div id=\"tip\" hidden=\"hidden\"></div>\n<script type=\"application/json\" id=\"data\">" +
         page_data(quantity) + "</script>\n<script>//<![CDATA[" + std::string(page_script) + std::string(chart_script) +
         "//]]></script>\n</body>\n</html>\n";
}

}  // namespace visualize

#endif

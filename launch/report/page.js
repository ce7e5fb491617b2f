'use strict';
// Draws the charts of `thinwire report` from the JSON in #data. Every drawn datum has the class
// "mark"; every figure names its chart in data-chart.
const data = JSON.parse(document.getElementById('data').textContent);
const SVG = 'http://www.w3.org/2000/svg';
const color = run => `var(--run${run % 6})`;
const MOST_LAYERS = 30;

function svg(name, attributes, parent, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}
function html(name, attributes, parent, text) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}
function title(node, text) { svg('title', {}, node, text); return node; }

// Numbers with units, three digits that count.
function digits(value) {
  const size = Math.abs(value);
  if (size === 0) return '0';
  return value.toFixed(Math.max(0, Math.min(6, 2 - Math.floor(Math.log10(size)))));
}
function scaled(value, units) {
  let [unit, factor] = units[0];
  for (const [name, each] of units) if (value >= each * 0.9995) [unit, factor] = [name, each];
  return `${digits(value / factor)} ${unit}`;
}
const bytes = value => scaled(value, [['B', 1], ['kB', 1e3], ['MB', 1e6], ['GB', 1e9], ['TB', 1e12]]);
const seconds = value => value === 0 ? '0 s' : scaled(value, [['µs', 1e-6], ['ms', 1e-3], ['s', 1]]);
const percent = value => `${(100 * value).toFixed(value < 0.1 ? 2 : 1)} %`;
const shown = (value, format) => value === null || value === undefined ? '–' : format(value);
const short = (text, most) => text.length <= most ? text : '…' + text.slice(1 - most);
// "quantize(bits=4, bucket=1024, norm=minmax)": the first argument tells settings apart.
const setting = text => text.replace(/^([^(]*\([^,)]*).*$/, '$1)');

// About `count` round numbers from 0 or low to high.
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(each => each * power).find(each => each >= raw);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(at);
  return found;
}

const charts = document.getElementById('charts');
let section = charts;
function heading(text, note) {
  section = html('section', {}, charts);
  html('h2', {}, section, text);
  if (note) html('p', {class: 'quiet'}, section, note);
}
function figure(parent, chart, caption, note) {
  const node = html('figure', {'data-chart': chart}, parent);
  const head = html('figcaption', {}, node, caption + ' ');
  if (note) html('span', {}, head, note);
  return node;
}
function nothing(parent, text) { html('div', {class: 'empty'}, parent, text); }
function legend(parent, entries) {
  const node = html('div', {class: 'legend'}, parent);
  for (const [name, paint] of entries) {
    const entry = html('span', {}, node);
    html('i', {class: 'swatch', style: `background:${paint}`}, entry);
    entry.append(name);
  }
}

// Lines of series {name, paint, dashed, dots, points: [[x, y]]}, labelled at their ends.
function lines(parent, series, xFormat, yFormat, fromZero) {
  series = series.filter(each => each.points.length > 0);
  if (series.length === 0) return nothing(parent, 'The logs hold no such numbers.');
  const W = 520, H = 270, left = 62, right = 110, top = 10, bottom = 30;
  const all = series.flatMap(each => each.points);
  const highX = Math.max(...all.map(point => point[0])) || 1;
  let lowY = Math.min(...all.map(point => point[1])), highY = Math.max(...all.map(point => point[1]));
  if (fromZero) lowY = Math.min(0, lowY);
  if (highY === lowY) { highY += Math.abs(highY) / 10 || 1; lowY -= fromZero ? 0 : Math.abs(lowY) / 10 || 1; }
  const x = value => left + (W - left - right) * value / highX;
  const y = value => H - bottom - (H - top - bottom) * (value - lowY) / (highY - lowY);
  const root = svg('svg', {viewBox: `0 0 ${W} ${H}`, role: 'img'}, parent);
  for (const at of ticks(lowY, highY, 5)) {
    svg('line', {class: 'grid', x1: left, x2: W - right, y1: y(at), y2: y(at)}, root);
    svg('text', {class: 'quiet', x: left - 8, y: y(at) + 4, 'text-anchor': 'end'}, root, yFormat(at));
  }
  for (const at of ticks(0, highX, 4)) {
    svg('text', {class: 'quiet', x: x(at), y: H - bottom + 18, 'text-anchor': 'middle'}, root, xFormat(at));
  }
  svg('line', {class: 'axis', x1: left, x2: W - right, y1: H - bottom, y2: H - bottom}, root);
  const ends = [];
  for (const each of series) {
    const points = each.points.map(point => [x(point[0]), y(point[1])]);
    const path = points.map((point, i) => `${i ? 'L' : 'M'}${point[0].toFixed(1)} ${point[1].toFixed(1)}`).join('');
    title(svg('path', {class: 'mark', d: path, fill: 'none', stroke: each.paint, 'stroke-width': 1.8,
                       'stroke-dasharray': each.dashed ? '5 4' : ''}, root), each.name);
    if (each.dots || points.length === 1) {
      each.points.forEach((point, i) => title(
        svg('circle', {class: 'mark', cx: points[i][0], cy: points[i][1], r: 3, fill: each.paint}, root),
        `${each.name}: ${yFormat(point[1])} at ${xFormat(point[0])}`));
    }
    const last = points[points.length - 1];
    ends.push({x: last[0] + 7, y: last[1] + 4, text: short(each.label || each.name, 17), paint: each.paint});
  }
  // Labels keep a line's distance.
  ends.sort((a, b) => a.y - b.y);
  ends.forEach((end, i) => { if (i && end.y < ends[i - 1].y + 13) end.y = ends[i - 1].y + 13; });
  const over = Math.max(0, ends[ends.length - 1].y - (H - bottom - 4));
  for (const end of ends) {
    svg('text', {class: 'halo', x: end.x, y: end.y - over, style: `fill:${end.paint}`}, root, end.text);
  }
}

function curves() {
  heading('Learning', 'Solid: training loss. Dashed, with dots: tests. Time is that of training alone; ' +
          'bytes are those that one rank has sent.');
  const unit = [...new Set(data.runs.map(run => run.lossUnit))].join(', ');
  const series = (x, y, options) => data.runs.map((run, i) => ({
    name: run.name + (options.dashed ? ', test' : ''), paint: color(i), ...options,
    points: run.points.filter(point => point[y] !== null && point[x] !== null).map(point => [point[x], point[y]])}));
  const pair = html('div', {class: 'pair'}, section);
  for (const [chart, caption, x, format] of [['time', 'time', 'seconds', seconds], ['bytes', 'bytes sent', 'bytes', bytes]]) {
    lines(figure(pair, `loss-${chart}`, `Loss against ${caption}`, `(${unit})`),
          [...series(x, 'loss', {}), ...series(x, 'testLoss', {dashed: true, dots: true})], format, digits, false);
  }
  for (const [chart, caption, x, format] of [['time', 'time', 'seconds', seconds], ['bytes', 'bytes sent', 'bytes', bytes]]) {
    lines(figure(pair, `accuracy-${chart}`, `Test accuracy against ${caption}`),
          series(x, 'accuracy', {dots: true}), format, percent, false);
  }
}

// The layers of the runs' last plans, the largest first; of many the rest is left out.
function largestLayers() {
  const found = new Map();
  data.runs.forEach((run, i) => {
    const plan = run.plans[run.plans.length - 1];
    for (const layer of plan ? plan.layers : []) {
      if (!found.has(layer.name)) found.set(layer.name, {name: layer.name, bytes: layer.bytes, runs: []});
      found.get(layer.name).runs[i] = layer;
    }
  });
  const all = [...found.values()].sort((a, b) => b.bytes - a.bytes);
  return {layers: all.slice(0, MOST_LAYERS), left: all.slice(MOST_LAYERS)};
}

function byLayer() {
  const {layers, left} = largestLayers();
  heading('Layers', left.length === 0 ? '' : `The ${layers.length} largest of ${layers.length + left.length} layers.`);
  if (data.runs.length > 1) legend(section, data.runs.map((run, i) => [run.name, color(i)]));
  const pair = html('div', {class: 'pair'}, section);
  const rows = (chart, caption, note, value, format, high) => {
    const node = figure(pair, chart, caption, note);
    if (layers.length === 0) return nothing(node, 'The logs tell of no layers.');
    const W = 520, left = 170, right = 90, line = 9, gap = 12;
    const used = data.runs.map((run, i) => i).filter(i => layers.some(layer => layer.runs[i]));
    const row = used.length * line + gap, H = layers.length * row + 10;
    const root = svg('svg', {viewBox: `0 0 ${W} ${H}`, role: 'img'}, node);
    layers.forEach((layer, l) => {
      const top = l * row + 4;
      svg('text', {x: left - 8, y: top + used.length * line / 2 + 4, 'text-anchor': 'end'}, root, short(layer.name, 25))
      used.forEach((i, n) => {
        const entry = layer.runs[i], number = entry ? value(entry) : null;
        if (number === null || number === undefined) return;
        const width = Math.max(1, (W - left - right) * number / high);
        title(svg('rect', {class: 'mark', x: left, y: top + n * line, width, height: line - 2, fill: color(i), rx: 1}, root),
              `${data.runs[i].name}, ${layer.name}: ${format(entry)} by ${entry.setting}`);
        svg('text', {class: 'quiet', x: left + width + 5, y: top + n * line + 7, style: 'font-size:9px'}, root, format(entry));
      });
    });
  };
  const present = layers.flatMap(layer => layer.runs.filter(Boolean));
  rows('bytes-by-layer', 'Bytes by layer', '(one encoding of the gradient, without frames)', entry => entry.payload,
       entry => bytes(entry.payload) + (entry.payload < entry.bytes ? ` (${digits(entry.bytes / entry.payload)}x less)` : ''),
       Math.max(1, ...present.map(entry => entry.payload)));
  rows('error-by-layer', 'Error by layer', '(part of the gradient’s norm that one encoding loses)', entry => entry.error,
       entry => percent(entry.error), Math.max(1e-9, ...present.map(entry => entry.error || 0)));
}

// One row a layer, one rectangle for each time in which its setting stayed.
function plans() {
  heading('Plan over time', 'What each layer is sent with, darker for more bits an element.');
  const bits = layer => 8 * layer.payload / layer.numel;
  const paint = layer => {
    const part = Math.min(100, Math.max(0, 100 * Math.log2(bits(layer) + 1) / Math.log2(33)));
    return `color-mix(in srgb, var(--many) ${part.toFixed(0)}%, var(--few))`;
  };
  data.runs.forEach((run, i) => {
    const node = figure(section, 'plan', run.name, setting(run.compression));
    if (run.plans.length === 0) return nothing(node, 'The log tells of no plan.');
    const names = run.plans[0].layers.slice().sort((a, b) => b.bytes - a.bytes).slice(0, MOST_LAYERS).map(layer => layer.name);
    const W = 1060, left = 170, line = 18, H = names.length * line + 26;
    const last = run.plans[run.plans.length - 1].step;
    const x = step => left + (W - left - 10) * step / last;
    const root = svg('svg', {viewBox: `0 0 ${W} ${H}`, role: 'img'}, node);
    names.forEach((name, row) => {
      svg('text', {x: left - 8, y: row * line + 13, 'text-anchor': 'end'}, root, short(name, 25));
      let begin = 0;
      run.plans.forEach((plan, p) => {
        const layer = plan.layers.find(each => each.name === name);
        const next = run.plans[p + 1] && run.plans[p + 1].layers.find(each => each.name === name);
        if (!layer || (next && next.setting === layer.setting)) return;
        const width = x(plan.step) - x(begin);
        title(svg('rect', {class: 'mark', x: x(begin), y: row * line, width, height: line - 2, rx: 1, style: `fill:${paint(layer)}`}, root),
              `${name}, to step ${plan.step}: ${layer.setting}, ${digits(bits(layer))} bits an element`);
        const text = setting(layer.setting);
        // Six units a letter.
        if (width > 6.5 * text.length + 10) {
          svg('text', {x: x(begin) + 6, y: row * line + 12, style: `font-size:10.5px;fill:${bits(layer) > 5 ? 'var(--ground)' : 'var(--ink)'}`}, root, text);
        }
        begin = plan.step;
      });
    });
    for (const at of ticks(0, last, 8)) {
      svg('text', {class: 'quiet', x: x(at), y: H - 8, 'text-anchor': 'middle'}, root, Number.isInteger(at) ? `step ${at}` : '');
    }
  });
}

const PHASES = [['FORWARD', 'forward', 'forward pass'], ['BACKWARD', 'backward', 'loss and backward pass'],
                ['WAIT', 'wait', 'waiting for the exchange: not hidden'], ['QUEUE', 'queue', 'queued'],
                ['COMPRESS', 'compress', 'encoding'], ['EXCHANGE', 'exchange', 'waiting for the network'],
                ['DECOMPRESS', 'decompress', 'decoding']];

function timelines() {
  heading('A step', 'The step of median length of each timeline. What the communication thread does right of ' +
          'the line did not hide behind the backward pass.');
  legend(section, PHASES.map(([, name, words]) => [words, `var(--${name})`]));
  if (data.timelines.length === 0) {
    nothing(figure(section, 'timeline', 'Timeline'), 'No timeline was given: train with --timeline FILE, and name FILE.');
  }
  for (const trace of data.timelines) {
    const all = trace.hidden + trace.exposed;
    const words = trace.steps === 0 ? 'no step is marked, so its last spans' :
      `${seconds(trace.seconds)}, median of ${trace.steps} steps. Exchange: ${seconds(all)} of the communication thread, ` +
      `${seconds(trace.hidden)} hidden, ${seconds(trace.exposed)} not`;
    const node = figure(section, 'timeline', trace.name, words);
    const tracks = [...new Set(trace.spans.map(span => span.track))];
    tracks.sort((a, b) => (b === 'training') - (a === 'training') || a.localeCompare(b, 'en', {numeric: true}));
    const W = 1060, left = 90, line = 24, H = tracks.length * line + 28;
    const x = at => left + (W - left - 10) * at / trace.seconds;
    const root = svg('svg', {viewBox: `0 0 ${W} ${H}`, role: 'img'}, node);
    for (const at of ticks(0, trace.seconds, 8)) {
      svg('line', {class: 'grid', x1: x(at), x2: x(at), y1: 0, y2: H - 24}, root);
      svg('text', {class: 'quiet', x: x(at), y: H - 8, 'text-anchor': 'middle'}, root, seconds(at));
    }
    tracks.forEach((track, row) => {
      svg('text', {x: left - 8, y: row * line + 15, 'text-anchor': 'end'}, root, short(track, 13));
      for (const span of trace.spans.filter(each => each.track === track)) {
        const kind = PHASES.find(([phase]) => phase === span.phase);
        title(svg('rect', {class: 'mark', x: x(span.begin), y: row * line + 2, width: Math.max(0.7, x(span.end) - x(span.begin)),
                           height: line - 6, rx: 1, style: `fill:var(--${kind ? kind[1] : 'rest'})`}, root),
              `${track}, ${span.phase}: ${seconds(span.end - span.begin)}` + (span.bytes === null ? '' : `, ${bytes(span.bytes)}`));
      }
    });
    if (trace.steps > 0) {
      svg('line', {x1: x(trace.backwardEnd), x2: x(trace.backwardEnd), y1: 0, y2: H - 24, style: 'stroke:var(--wait)', 'stroke-width': 1.5}, root);
    }
  }
}

function comparison() {
  heading('Runs');
  const node = figure(section, 'comparison', 'Comparison', data.runs.length > 1 ? '(the first run is the measure of the ratios)' : '');
  const table = html('table', {}, html('div', {class: 'scroll'}, node));
  const head = html('tr', {}, table);
  for (const name of ['run', 'compression', 'ranks', 'test accuracy', 'training', 'sent a step and rank', 'less than uncompressed',
                      'a step', 'not hidden']) html('th', {}, head, name);
  data.runs.forEach((run, i) => {
    const row = html('tr', {class: 'mark'}, table), profile = run.profile;
    const name = html('td', {}, row);
    html('i', {class: 'swatch', style: `background:${color(i)}`}, name);
    name.append(run.name + (run.finished ? '' : ' (ended early)'));
    html('td', {title: run.compression}, row, setting(run.compression || 'none'));
    for (const text of [run.world ? `${run.world} on ${run.hosts || '?'} hosts`.replace('on 1 hosts', 'on 1 host') : '–',
                        shown(run.accuracy, percent), shown(run.seconds, seconds), shown(run.wire, bytes),
                        run.wire > 0 && run.dense > 0 ? `${(run.dense / run.wire).toFixed(2)}x` : '–',
                        profile ? seconds(profile.step) : '–', profile ? seconds(profile.exposed) : '–']) html('td', {}, row, text);
  });
  const steps = figure(section, 'step-parts', 'Where a step’s time goes', '(medians)');
  const measured = data.runs.map((run, i) => [run, i]).filter(([run]) => run.profile && run.profile.step > 0);
  if (measured.length === 0) return nothing(steps, 'The logs hold no profile of a step.');
  legend(steps, [...PHASES.slice(0, 3).map(([, name, words]) => [words, `var(--${name})`]), ['optimiser, data and the rest', 'var(--rest)']]);
  const high = Math.max(...measured.map(([run]) => run.profile.step));
  const W = 1060, left = 170, line = 26;
  const root = svg('svg', {viewBox: `0 0 ${W} ${measured.length * line + 4}`, role: 'img'}, steps);
  measured.forEach(([run], row) => {
    const {step, forward, backward, exposed} = run.profile;
    svg('text', {x: left - 8, y: row * line + 16, 'text-anchor': 'end'}, root, short(run.name, 25));
    let at = left;
    for (const [name, value] of [['forward', forward], ['backward', backward], ['wait', exposed],
                                 ['rest', Math.max(0, step - forward - backward - exposed)]]) {
      const width = (W - left - 90) * value / high;
      title(svg('rect', {class: 'mark', x: at, y: row * line + 2, width: Math.max(0, width), height: line - 8, style: `fill:var(--${name})`}, root),
            `${run.name}, ${name}: ${seconds(value)}`);
      if (width > 48) svg('text', {x: at + 5, y: row * line + 15, style: 'font-size:10.5px'}, root, seconds(value));
      at += width;
    }
    svg('text', {x: at + 7, y: row * line + 16}, root, seconds(step));
  });
}

document.getElementById('summary').textContent =
  data.runs.map(run => `${run.name}: ${run.model || 'a model'}` + (run.parameters ? ` of ${run.parameters.toLocaleString('en')} parameters` : '') +
    (run.backend ? ` over ${run.backend}` : '')).join(' · ');
if (data.runs.length > 0) { comparison(); curves(); byLayer(); plans(); }
timelines();
document.documentElement.dataset.drawn = 'yes';

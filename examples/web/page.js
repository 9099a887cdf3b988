// The page: passes prompts to the worker, and shows what it writes.
'use strict';
{
const at = (id) => document.getElementById(id);
const page = document.documentElement.dataset;  // what tests read
const DT = 1, REACH = 2;  // places among the four numbers of a byte and layer
const hint = at('cell').textContent;
let worker = null, layers = 0, chosen = 5, number = 0, running = false;
let letters = [], picked = null, decoder = null, partial = null, low = [], high = [], heldFrom = 0;

const value = (letter, layer, which) => letter.numbers[4 * layer + which];
const digits = (x) => x >= 100 ? x.toFixed(0) : x.toPrecision(2);
const bytesText = (x) => x < 0 ? 'all' : String(x);
const place = (layer, x) => high[layer] > low[layer] ? Math.log(x / low[layer]) / Math.log(high[layer] / low[layer]) : 0;

function heat(letter) {
  letter.span.style.setProperty('--heat', (0.55 * place(chosen, value(letter, chosen, DT))).toFixed(3));
}

function addLayers(count) {
  layers = count;
  chosen = Math.min(chosen, count - 1);
  for (let i = 0; i < count; ++i) {
    const row = at('layers').insertRow(), head = document.createElement('th'), label = document.createElement('label'),
          radio = document.createElement('input');
    head.scope = 'row';
    Object.assign(radio, {type: 'radio', name: 'layer', value: i, checked: i === chosen, ariaLabel: `Layer ${i}`});
    radio.addEventListener('change', () => { chosen = i; show(true); });
    label.append(radio, ' ' + i);
    head.append(label);
    row.append(head);
    for (let c = 0; c < 2; ++c) row.insertCell().append(document.createElement('b'), document.createElement('i'));
  }
}

/// Shows the state after the last letter; colours all of them again if asked to.
function show(all) {
  const last = letters[letters.length - 1];
  for (const [i, row] of [...at('layers').rows].entries()) {
    row.className = i === chosen ? 'chosen' : '';
    if (!last) continue;
    const [dt, reach] = [...row.cells].slice(1), bytes = value(last, i, REACH);
    dt.firstChild.textContent = digits(value(last, i, DT));
    dt.lastChild.style.setProperty('--part', place(i, value(last, i, DT)).toFixed(3));
    reach.firstChild.textContent = bytesText(bytes);
    reach.lastChild.style.setProperty('--part', bytes < 0 ? 1 : Math.min(1, Math.log2(1 + bytes) / 10).toFixed(3));
  }
  if (!last) return;
  if (all) letters.forEach(heat);
  const held = value(last, chosen, REACH), from = held < 0 ? 0 : Math.max(0, last.end - held);
  for (let i = letters.length - 1; i >= 0 && (all || letters[i].end > Math.min(from, heldFrom)); --i) {
    letters[i].span.classList.toggle('held', letters[i].end > from);
  }
  heldFrom = from;
}

function addLetter(text, letter, given) {
  letter.span = document.createElement('span');
  letter.span.textContent = text;
  if (given) letter.span.className = 'given';
  letters.push(letter);
  heat(letter);
  at('text').append(letter.span);
}

/// Adds bytes with their numbers. A character of several bytes is one letter, with the numbers of its last byte.
function add({bytes, numbers, given}) {
  const size = 4 * layers, box = at('text'), follows = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  const before = partial ? partial.end : letters.length ? letters[letters.length - 1].end : 0;
  bytes.forEach((byte, i) => {
    const text = decoder.decode(new Uint8Array([byte]), {stream: true});
    const letter = {end: before + i + 1, numbers: numbers.slice(size * i, size * (i + 1))};
    for (let layer = 0; layer < layers; ++layer) {
      const dt = value(letter, layer, DT);
      low[layer] = Math.min(low[layer] ?? dt, dt);
      high[layer] = Math.max(high[layer] ?? dt, dt);
    }
    partial = text ? null : letter;
    if (text) addLetter(text, letter, given);
  });
  show(given);
  if (follows) box.scrollTop = box.scrollHeight;
}

/// Shows the numbers of a letter.
function pick(letter) {
  picked?.span.classList.remove('picked');
  picked = letter;
  picked.span.classList.add('picked');
  const name = JSON.stringify(letter.span.textContent).slice(1, -1).replace(' ', 'space');
  at('cell').textContent = `${name}, layer ${chosen}: dt ${digits(value(letter, chosen, DT))}, reach ` +
      (value(letter, chosen, REACH) < 0 ? 'all of the text' : `${value(letter, chosen, REACH)} bytes`);
}

function ended(words) {
  running = false;
  at('stop').disabled = true;
  at('progress').textContent = '';
  at('status').textContent = words;
  const rest = partial ? decoder.decode() : '';  // of a character that the text does not finish
  if (rest) addLetter(rest, partial, false);
  partial = null;
  if (letters.length) show(true);
}

function fail(message) {
  ended('');
  at('error').hidden = false;
  at('error').textContent = message;
  page.state = 'error';
}

/// Nothing will come from the worker.
function broken(message) {
  at('start').disabled = true;
  fail(message);
}

function received({data}) {
  if (data.error) return (data.number ?? number) === number ? fail(data.error) : undefined;
  if (data.loaded) {
    addLayers(data.loaded.layers);
    page.loaded = Math.round(data.loaded.milliseconds);
    at('status').textContent = running ? 'Writing …' : 'Ready.';
    page.state ??= 'ready';
    return;
  }
  if (data.number !== number || !running) return;
  add(data);
  if (data.given) return;
  page.first ??= Math.round(performance.now());  // since the page was asked for
  page.written = Number(page.written) + data.bytes.length;
  page.speed = Math.round(data.speed);
  if (data.done) page.state = 'done';
  const words = `${page.written} bytes, ${page.speed} a second`;
  data.done ? ended(words) : at('progress').textContent = words;  // which is not read out all the time
}

try {
  worker = new Worker('worker.js');
  worker.onmessage = received;
  worker.onerror = (event) => broken(event.message || 'the worker could not be started');
} catch (error) {  // a page that was opened as a file
  broken(error.message);
}

at('temperature').addEventListener('input', () => { at('degrees').value = Number(at('temperature').value).toFixed(2); });
at('form').addEventListener('submit', (event) => {
  event.preventDefault();
  running = true;
  letters = [], picked = null, partial = null, low = [], high = [], heldFrom = 0, decoder = new TextDecoder();
  at('text').replaceChildren();
  at('error').hidden = true;
  at('cell').textContent = hint;
  if (layers) at('status').textContent = 'Writing …';
  at('stop').disabled = false;
  page.state = 'running';
  page.written = 0;
  worker.postMessage({number: ++number, write: {prompt: at('prompt').value, temperature: Number(at('temperature').value),
                      length: Number(at('length').value), seed: Math.floor(Math.random() * 2 ** 32), shows: 1}});
});
at('stop').addEventListener('click', () => {
  worker.postMessage({number: ++number});
  page.state = 'stopped';
  ended(`Stopped after ${page.written} bytes.`);
});
at('text').addEventListener('pointerover', (event) => {
  const letter = letters.find(({span}) => span === event.target);
  if (letter) pick(letter);
});
at('text').addEventListener('keydown', (event) => {
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key], from = picked ? letters.indexOf(picked) : step < 0 ? letters.length : -1;
  if (!step || !letters[from + step]) return;
  event.preventDefault();
  pick(letters[from + step]);
  picked.span.scrollIntoView({block: 'nearest'});
});
}

// Runs the model beside the page, which stays responsive. It works in slices of a few milliseconds and looks for
// messages between them: so it can be stopped without memory that is shared between threads.
'use strict';
importScripts('minimamba.js');

const slice = 12, between = 50;  // milliseconds of work between two looks, and between what is shown
let current = 0;                 // the text that is being written; every start and stop changes it

const next = (() => {  // calls a function after the messages that wait; setTimeout would wait for 4 ms
  const channel = new MessageChannel(), tasks = [];
  channel.port1.onmessage = () => tasks.shift()();
  return (task) => { tasks.push(task); channel.port2.postMessage(0); };
})();

async function bytesOf(file) {
  const answer = await fetch(file);
  if (!answer.ok) throw new Error(`${file}: ${answer.status} ${answer.statusText}`);
  return new Uint8Array(await answer.arrayBuffer());
}

function checked(module, result) {
  if (result < 0) throw new Error(module.UTF8ToString(module._minimamba_error()));
  return result;
}

function put(module, ...parts) {
  const size = parts.reduce((sum, part) => sum + part.length, 0);
  let place = module._minimamba_buffer(size);
  if (size > 0 && place === 0) throw new Error('no memory is left');
  for (const part of parts) {
    module.HEAPU8.set(part, place);
    place += part.length;
  }
}

async function load() {
  const begin = performance.now();
  const [module, weights, config] =
      await Promise.all([createMinimamba(), bytesOf('model.safetensors'), bytesOf('config.json')]);
  put(module, weights, config);
  checked(module, module._minimamba_load(weights.length));
  const layers = checked(module, module._minimamba_layers());
  postMessage({loaded: {layers, milliseconds: performance.now() - begin}});
  return {module, layers};
}

/// The numbers of `count` bytes: dt and reach of the median and of 90 % of each layer.
function selection(module, layers, count) {
  const place = module._minimamba_selection() / 4;
  return module.HEAPF32.slice(place, place + 4 * layers * count);
}

async function write(number, {prompt, temperature, length, seed, shows}) {
  const {module, layers} = await model;
  if (number !== current) return;
  const given = new TextEncoder().encode(prompt || '\n');
  checked(module, module._minimamba_begin(temperature, 0.1, seed, shows));
  put(module, given);
  checked(module, module._minimamba_read());
  postMessage({number, given: true, bytes: given, numbers: shows ? selection(module, layers, given.length) : null});
  let written = 0, worked = 0, bytes = [], numbers = [], posted = 0;
  const work = () => {
    try {
      if (number !== current) return;
      const begin = performance.now();
      let now = begin;
      for (let more = true; more; more = written < length && now - begin < slice) {
        bytes.push(checked(module, module._minimamba_next()));
        if (shows) numbers.push(...selection(module, layers, 1));
        ++written;
        now = performance.now();
      }
      worked += now - begin;
      if (now - posted > between || written === length) {
        postMessage({number, bytes, numbers, speed: 1000 * written / worked, done: written === length});
        posted = now, bytes = [], numbers = [];
      }
      if (written < length) next(work);
    } catch (error) {
      postMessage({number, error: error.message});
    }
  };
  next(work);
}

onmessage = ({data}) => {
  current = data.number;
  if (data.write) write(data.number, data.write).catch((error) => postMessage({number: data.number, error: error.message}));
};
const model = load();
model.catch((error) => postMessage({error: error.message}));

// Opens the page in headless Chromium, served from a folder below the root of a server, and checks what docs/browser.md
// promises: no request elsewhere, no error, the first byte within 2 s, the text of the portable kernels, Stop, speed.
//   PAGE folder of the page   GREEDY tests/web/greedy.cpp, compiled   CHROMIUM   PLAYWRIGHT folder with playwright-core
import assert from 'node:assert/strict';
import {execFileSync} from 'node:child_process';
import {createReadStream, existsSync, readFileSync, statSync} from 'node:fs';
import {createServer} from 'node:http';
import {createRequire} from 'node:module';
import {extname, join, normalize} from 'node:path';

const {PAGE, GREEDY, CHROMIUM, PLAYWRIGHT} = process.env;
const {chromium} = createRequire(join(PLAYWRIGHT, 'here.js'))('playwright-core');
const prompt = 'ROMEO:\n', length = 300, wanted = 600;

// The page of docs/browser.md that uses the module itself.
const guide = readFileSync(new URL('../../docs/browser.md', import.meta.url), 'utf8');
const own = '<!doctype html><link rel="icon" href="data:,">' + guide.match(/```html\n([^]*?)```/)[1];

const types = {'.html': 'text/html', '.css': 'text/css', '.js': 'text/javascript', '.wasm': 'application/wasm'};
const server = createServer((request, response) => {
  const path = normalize(decodeURIComponent(new URL(request.url, 'http://x').pathname));
  if (path === '/below/it/own.html') return response.writeHead(200, {'Content-Type': 'text/html'}).end(own);
  const file = join(PAGE, path.replace(/^\/below\/it\//, '/') + (path.endsWith('/') ? 'index.html' : ''));
  if (!path.startsWith('/below/it/') || !existsSync(file) || !statSync(file).isFile()) {
    return response.writeHead(404).end();
  }
  response.writeHead(200, {'Content-Type': types[extname(file)] ?? 'application/octet-stream'});
  createReadStream(file).pipe(response);
});
await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
const origin = `http://127.0.0.1:${server.address().port}`;

const browser = await chromium.launch({executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-background-networking']});
try {
  const page = await browser.newPage({viewport: {width: 900, height: 1100}});
  const faults = [], elsewhere = [], asked = new Set();
  page.on('console', (message) => { if (['error', 'warning'].includes(message.type())) faults.push(message.text()); });
  page.on('pageerror', (error) => faults.push(String(error)));
  page.on('requestfailed', (request) => faults.push('failed: ' + request.url()));
  page.on('response', (response) => { if (response.status() >= 400) faults.push(response.status() + ' ' + response.url()); });
  page.on('request', (request) => {
    asked.add(request.url().split('/').at(-1));
    if (!request.url().startsWith(origin + '/below/it/') && !request.url().startsWith('data:')) elsewhere.push(request.url());
  });
  const data = () => page.evaluate(() => ({...document.documentElement.dataset}));
  const state = async (name) => {
    await page.waitForFunction((name) => [name, 'error'].includes(document.documentElement.dataset.state), name, {timeout: 60000});
    assert.equal((await data()).state, name, await page.textContent('#error'));
  };
  const write = async (temperature, count) => {
    await page.fill('#temperature', String(temperature));
    await page.fill('#length', String(count));
    await page.click('#start');
  };

  // At once, before the model is there.
  await page.goto(origin + '/below/it/');
  await page.fill('#prompt', prompt);
  await write(0, length);
  await state('done');
  const {first, loaded} = await data();

  // Greedy text is that of the portable kernels.
  const printed = execFileSync(GREEDY, [PAGE, prompt, String(length)], {maxBuffer: 1 << 20}).toString('utf8');
  const [portable, best, name, share] = printed.slice(0, printed.indexOf('\n')).split(' ');
  const expected = prompt + printed.slice(printed.indexOf('\n') + 1);
  assert.equal(await page.textContent('#text'), expected);

  // Each layer has its numbers, and a part of the text is underlined.
  assert.equal(await page.locator('#layers tr').count(), 7);
  for (const number of await page.locator('#layers b').allTextContents()) assert.match(number, /^([0-9.e-]+|all)$/);
  const held = await page.locator('#text .held').count(), letters = await page.locator('#text span').count();
  assert.ok(held > 0 && held <= letters, `${held} of ${letters}`);
  await page.click('#layers input >> nth=0');
  await page.hover('#text span >> nth=0');
  assert.match(await page.textContent('#cell'), /^R, layer 0: dt [0-9.]+, reach/);
  await page.focus('#text');
  await page.keyboard.press('ArrowRight');
  assert.match(await page.textContent('#cell'), /^O, layer 0: dt [0-9.]+, reach/);
  assert.equal(await page.textContent('#text .picked'), 'O');

  // Speed: the best of five, as for this machine.
  let speed = 0, whole = 0, model = 0;
  for (let i = 0; i < 5; ++i) {
    const begin = performance.now();
    await write(0.8, 600);
    await state('done');
    whole = Math.max(whole, Math.round(600000 / (performance.now() - begin)));
    speed = Math.max(speed, Number((await data()).speed));
  }
  // The same without what is shown, in a worker of our own.
  model = await page.evaluate(() => new Promise((resolve, reject) => {
    const worker = new Worker('worker.js');
    let best = 0, number = 0;
    const begin = () => worker.postMessage({number: ++number, write: {prompt: 'ROMEO:\n', temperature: 0, length: 300, seed: 0, shows: 0}});
    worker.onmessage = ({data}) => {
      if (data.error) reject(new Error(data.error));
      if (!data.done) return;
      best = Math.max(best, data.speed);
      number < 5 ? begin() : (worker.terminate(), resolve(Math.round(best)));
    };
    begin();
  }));

  // Stop stops, also before all of a long text is there, and another text can follow.
  await write(1, 1000);
  await page.waitForFunction(() => Number(document.documentElement.dataset.written) > 20);
  await page.click('#stop');
  const stopped = (await page.textContent('#text')).length;
  assert.ok(stopped < prompt.length + 1000, `${stopped} bytes`);
  await page.waitForTimeout(200);
  assert.equal((await page.textContent('#text')).length, stopped);
  assert.match(await page.textContent('#status'), /^Stopped after/);
  await page.fill('#prompt', 'Zürich, 李: ');
  await write(0, 5);
  await state('done');
  assert.ok((await page.textContent('#text')).startsWith('Zürich, 李: '));

  // A file that is missing is told.
  const broken = await browser.newPage();
  await broken.route('**/model.safetensors', (route) => route.fulfill({status: 404}));
  await broken.goto(origin + '/below/it/');
  await broken.waitForFunction(() => document.documentElement.dataset.state === 'error');
  assert.match(await broken.textContent('#error'), /^model.safetensors: 404/);

  // So is a worker that does not start: then nothing can be asked of it.
  const alone = await browser.newPage();
  await alone.route('**/minimamba.js', (route) => route.fulfill({status: 404}));
  await alone.goto(origin + '/below/it/');
  await alone.waitForFunction(() => document.documentElement.dataset.state === 'error');
  assert.ok((await alone.textContent('#error')).length > 0 && await alone.isDisabled('#start'));

  // Characters come in parts, and the last one is not finished; an error of a text that was stopped is nobody's.
  const parts = await browser.newPage();
  await parts.route('**/worker.js', (route) => route.fulfill({contentType: 'text/javascript', body: `
      const numbers = (count) => Array(count).fill([1, 2, 4, 4]).flat();
      const post = (number, bytes, more) => postMessage({number, bytes, numbers: numbers(bytes.length), speed: 1, ...more});
      onmessage = ({data: {number, write}}) => {
        if (!write) return;
        postMessage({number: number - 1, error: 'late'});
        post(number, [65], {given: true});
        post(number, [0xC3]);
        post(number, [0xA4, 0xE2, 0x82], {done: true});
      };
      postMessage({loaded: {layers: 1, milliseconds: 1}});`}));
  await parts.goto(origin + '/below/it/');
  await parts.click('#start');
  await parts.waitForFunction(() => ['done', 'error'].includes(document.documentElement.dataset.state));
  assert.deepEqual(await parts.locator('#text span').allTextContents(), ['A', 'ä', '\uFFFD']);
  assert.deepEqual(await parts.locator('#text .held').allTextContents(), ['ä', '\uFFFD']);  // 4 bytes back from the fifth
  assert.equal(await parts.textContent('#status'), '4 bytes, 1 a second');

  const other = await browser.newPage();
  await other.goto(origin + '/below/it/own.html');
  assert.equal(await other.evaluate(() => write('ROMEO:\n', 20).then((text) => text.length)), 20);

  if (process.env.PICTURE) await page.screenshot({path: process.env.PICTURE, fullPage: true});
  console.log(`first byte ${first} ms after the page was asked for, of which the model ${loaded} ms`);
  console.log(`bytes a second: ${speed} of the worker's work with what the page shows (${whole} from the click to the last byte), ` +
              `${model} without; here, one thread: ${portable} portable, ${best} ${name}`);
  assert.deepEqual(elsewhere, []);
  assert.ok(asked.has('model.safetensors') && asked.has('minimamba.wasm'), 'requests of the worker are seen');
  assert.deepEqual(faults, []);
  const busy = Number(share) < 0.9;  // then times say nothing
  if (busy) console.log(`a program has ${share} of a processor here, so times are not checked`);
  assert.ok(busy || Number(first) < 2000, 'the first byte is late');
  assert.ok(busy || speed >= wanted, `less than ${wanted} bytes a second`);
} finally {
  await browser.close();
  server.close();
}

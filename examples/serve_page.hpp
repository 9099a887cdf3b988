// The page of serve: it continues a text, and shows for each token what else the model found likely. It asks only this
// server.
#ifndef MINIMAMBA_EXAMPLES_SERVE_PAGE_HPP
#define MINIMAMBA_EXAMPLES_SERVE_PAGE_HPP

#include <string_view>

namespace serve {

inline constexpr std::string_view page = R"html(<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>minimamba</title>
<style>
  :root { color-scheme: light dark; --line: #8884; --accent: #3a6ea5; }
  * { box-sizing: border-box; }
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1.5rem auto; padding: 0 1rem; }
  h1 { font-size: 1.2rem; margin: 0 0 .8rem; }
  h1 small { font-weight: normal; opacity: .65; }
  textarea, #out { width: 100%; font: 14px/1.55 ui-monospace, monospace; padding: .7rem; border: 1px solid var(--line); border-radius: 6px; }
  textarea { height: 7rem; resize: vertical; background: transparent; color: inherit; }
  #out { min-height: 14rem; white-space: pre-wrap; overflow-wrap: anywhere; margin: .6rem 0; }
  #out .given { opacity: .55; }
  #out .token { border-radius: 3px; cursor: pointer; }
  #out .token:hover, #out .token.shown { outline: 2px solid var(--accent); }
  form { display: flex; flex-wrap: wrap; gap: .6rem 1rem; align-items: center; margin: .6rem 0; }
  label { font-size: 13px; opacity: .85; }
  input { width: 5.2rem; font: inherit; padding: .15rem .3rem; }
  #key { width: 9rem; }
  button { font: inherit; padding: .3rem 1rem; border-radius: 6px; border: 1px solid var(--accent); cursor: pointer; background: var(--accent); color: white; }
  button:disabled { opacity: .4; cursor: default; }
  #stop { background: transparent; color: inherit; }
  #speed { margin-left: auto; font-variant-numeric: tabular-nums; }
  #error { color: #c33; min-height: 1.5em; }
  #likely { min-height: 10.5rem; font: 13px/1.6 ui-monospace, monospace; border-top: 1px solid var(--line); padding-top: .5rem; }
  #likely div { display: grid; grid-template-columns: 8rem 4.5rem 1fr; gap: .6rem; align-items: center; }
  #likely i { display: block; height: .75em; border-radius: 3px; background: var(--accent); opacity: .55; }
  #likely .chosen { font-weight: bold; }
  #likely .chosen i { opacity: 1; }
</style>
</head>
<body>
<h1>minimamba <small id="model"></small></h1>
<textarea id="prompt" spellcheck="false" aria-label="prompt">ROMEO:
</textarea>
<form id="form">
  <button id="start">Continue</button>
  <button id="stop" type="button" disabled>Stop</button>
  <label>tokens <input id="tokens" type="number" min="1" value="300"></label>
  <label>temperature <input id="temperature" type="number" min="0" max="2" step="0.05" value="0.8"></label>
  <label>top p <input id="top" type="number" min="0" max="1" step="0.05" value="1"></label>
  <label>seed <input id="seed" type="number" placeholder="any"></label>
  <label>API key <input id="key" type="password" placeholder="none" autocomplete="off"></label>
  <span id="speed"></span>
</form>
<div id="error" role="alert"></div>
<div id="out" aria-live="off"></div>
<div id="likely">Point at a token to see what else the model found likely there.</div>
)html"
                                         R"html(<script>
'use strict';
const at = (id) => document.getElementById(id);
const headers = () => ({'Content-Type': 'application/json', ...(at('key').value ? {Authorization: 'Bearer ' + at('key').value} : {})});
const visible = (text) => JSON.stringify(text).slice(1, -1).replace(/^ | $/g, '\u00b7') || '(nothing)';
let running = null, pending = [], shown = null;

async function nameModel() {
  const answer = await fetch('/v1/models', {headers: headers()});
  if (answer.ok) at('model').textContent = (await answer.json()).data[0].id;
}
at('key').addEventListener('change', nameModel);

function showLikely(span, token) {
  if (shown) shown.classList.remove('shown');
  shown = span;
  span.classList.add('shown');
  const rows = Object.entries(token.top || {}).sort((a, b) => b[1] - a[1]);
  if (!rows.some(([text]) => text === token.text)) rows.push([token.text, token.logprob]);
  at('likely').replaceChildren(...rows.map(([text, logprob]) => {
    const row = document.createElement('div'), name = document.createElement('span'), part = document.createElement('span'),
          bar = document.createElement('i'), p = Math.exp(logprob);
    name.textContent = visible(text);
    part.textContent = (100 * p).toFixed(p < 0.1 ? 2 : 1) + ' %';
    bar.style.width = Math.max(100 * p, 0.3) + '%';
    if (text === token.text) row.className = 'chosen';
    row.append(name, part, bar);
    return row;
  }));
}

// Tokens that are parts of a character are shown together, once it is complete.
function textOf(token) {
  if (!token.text.startsWith('bytes:')) { pending = []; return token.text; }
  for (const [, byte] of token.text.matchAll(/\\x(..)/g)) pending.push(parseInt(byte, 16));
  try {
    const text = new TextDecoder('utf-8', {fatal: true}).decode(new Uint8Array(pending));
    pending = [];
    return text;
  } catch { return pending.length < 4 ? '' : (pending = [], '\ufffd'); }
}

function addToken(token) {
  const text = textOf(token);
  if (!text) return;
  const span = document.createElement('span');
  span.className = 'token';
  span.textContent = text;
  span.style.background = `hsl(35 90% 55% / ${Math.min(0.5, 0.08 * -token.logprob)})`;  // surprising tokens stand out
  const show = () => showLikely(span, token);
  span.addEventListener('mouseenter', show);
  span.addEventListener('click', show);
  at('out').append(span);
}

function addEvent(event) {
  if (event.error) throw new Error(event.error.message);
  const parts = event.choices[0] && event.choices[0].logprobs;
  if (!parts) return 0;
  parts.tokens.forEach((text, i) => addToken({text, logprob: parts.token_logprobs[i], top: parts.top_logprobs && parts.top_logprobs[i]}));
  return parts.tokens.length;
}

async function run() {
  const prompt = at('prompt').value, seed = at('seed').value;
  at('error').textContent = at('speed').textContent = '';
  const given = document.createElement('span');
  given.className = 'given';
  given.textContent = prompt;
  at('out').replaceChildren(given);
  pending = [];
  running = new AbortController();
  const body = {prompt, max_tokens: +at('tokens').value, temperature: +at('temperature').value, top_p: +at('top').value,
                logprobs: 5, stream: true, ...(seed === '' ? {} : {seed: +seed})};
  const answer = await fetch('/v1/completions', {method: 'POST', headers: headers(), body: JSON.stringify(body), signal: running.signal});
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '', count = 0, start = 0;
  for (;;) {
    const {value, done} = await reader.read();
    if (done) break;
    const lines = (rest + value).split('\n\n');
    rest = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, '');
      if (data === '[DONE]') return;
      count += addEvent(JSON.parse(data));
      if (!start && count) { start = performance.now(); count = 0; continue; }
      const seconds = (performance.now() - start) / 1000;
      if (seconds > 0.05) at('speed').textContent = Math.round(count / seconds) + ' tokens/s';
    }
  }
}

at('form').addEventListener('submit', async (event) => {
  event.preventDefault();
  at('start').disabled = true;
  at('stop').disabled = false;
  try {
    await run();
  } catch (error) {
    if (error.name !== 'AbortError') at('error').textContent = error.message;
  }
  at('start').disabled = false;
  at('stop').disabled = true;
});
at('stop').addEventListener('click', () => running.abort());
nameModel();
</script>
</body>
</html>
)html";

}  // namespace serve

#endif

// Makes tests/golden/data/tokenizers: two small tokenizers, trained by the Hugging Face library on words that this
// script makes up, and what that library and llama.cpp make of some texts.
//   falcon.json, falcon.jsonl    byte-level BPE with Falcon's pre-tokenizer
//   sentencepiece.json, .jsonl   BPE with byte_fallback and Metaspace, as Codestral's; also with other steps
//   sentencepiece.gguf           the same tokens with scores, as llama.cpp reads them
//   llama.jsonl                  what llama.cpp gives for both
// Needs npm's "tokenizers" (0.23.2: the Rust library itself) and llama_ids.cpp beside this file, linked with llama.cpp's
// library (v0.5.0).
// Usage: node make_tokenizers.mjs NODE_MODULES LLAMA_IDS DATA_FOLDER
import { spawnSync } from "node:child_process";
import fs from "node:fs";
import { createRequire } from "node:module";
import os from "node:os";
import path from "node:path";

const [modules, llamaIds, folder] = process.argv.slice(2).map((x) => path.resolve(x));
const hf = createRequire(import.meta.url)(path.join(modules, "tokenizers"));

let seed = 1n;
function random(below) {
  seed = (seed * 6364136223846793005n + 1442695040888963407n) & 0xffffffffffffffffn;
  return Number((seed >> 33n) % BigInt(below));
}
const pick = (list) => list[random(list.length)];

/// Lines of made-up words with punctuation, numbers, indentation and other scripts.
function corpus() {
  const syllables = "ka to mi ren sol the in er an st lor ing qu ch ve na\u00EF \u00FCb \u00E9t ou sh pra del".split(" ");
  const words = Array.from({ length: 150 }, () => Array.from({ length: 1 + random(3) }, () => pick(syllables)).join(""));
  const other = ["\u4E2D\u6587", "\u65E5\u672C", "\u043F\u0440\u0438", "x\u00B2", "5\u00BD", "()", "foo();", "<s", "/>", "it's", "we'll", "->"];
  const lines = [];
  for (let i = 0; i < 2500; ++i) {
    const line = [];
    for (let n = 1 + random(3); n > 0; --n) {
      const kind = random(10);
      line.push(kind < 7 ? words[Math.min(random(150), random(150))] : kind < 8 ? String(random(30000)) : pick(other));
    }
    lines.push(" ".repeat(pick([0, 0, 0, 2, 4, 8])) + line.join(pick([" ", " ", ", ", "  ", "."])) + pick(["", ".", "!", " {"]));
  }
  return lines.join("\n");
}
function train(preTokenizer, text) {
  const file = path.join(os.tmpdir(), `corpus-${process.pid}.txt`);
  fs.writeFileSync(file, text);
  const tokenizer = new hf.Tokenizer(hf.BPE.empty());
  tokenizer.setPreTokenizer(preTokenizer);
  tokenizer.train([file]);
  tokenizer.save(file, false);
  const { vocab, merges } = JSON.parse(fs.readFileSync(file, "utf8")).model;
  fs.unlinkSync(file);
  const letters = Object.keys(vocab).filter((x) => [...x].length === 1);
  return { letters, merges: merges.map((x) => (typeof x === "string" ? x.split(" ") : x)) };
}
const numbered = (tokens) => Object.fromEntries(tokens.map((x, id) => [x, id]));
const added = (id, content, special = true) =>
  ({ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special });
const byteTokens = Array.from({ length: 256 }, (_, x) => `<0x${x.toString(16).toUpperCase().padStart(2, "0")}>`);
const save = (name, json) => fs.writeFileSync(path.join(folder, name), JSON.stringify(json, null, 1) + "\n");
const saveLines = (name, rows) =>
  fs.writeFileSync(path.join(folder, name), rows.map((x) => JSON.stringify(x) + "\n").join(""));

const falconSteps = [
  { type: "Punctuation", behavior: "Contiguous" },
  { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
  { type: "Digits", individual_digits: false },
  { type: "Split", pattern: { Regex: "[0-9][0-9][0-9]" }, behavior: "Isolated", invert: false },
];
function falcon(text) {
  // Trained without the step for digits, so that some merges would join what it splits.
  const { merges } = train(hf.byteLevelPreTokenizer(false), text);
  const some = merges.slice(0, 450);
  const tokens = ["<|endoftext|>", ...hf.byteLevelAlphabet().sort(), ...some.map(([a, b]) => a + b)];
  return {
    version: "1.0", truncation: null, padding: null, added_tokens: [added(0, "<|endoftext|>")], normalizer: null,
    pre_tokenizer: { type: "Sequence", pretokenizers: falconSteps },
    post_processor: { type: "ByteLevel", add_prefix_space: true, trim_offsets: false, use_regex: true },
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: { type: "BPE", dropout: null, unk_token: null, continuing_subword_prefix: "", end_of_word_suffix: "",
             fuse_unk: false, byte_fallback: false, vocab: numbered(tokens), merges: some.map((x) => x.join(" ")) },
  };
}
function sentencePiece(text) {
  const { letters, merges } = train(hf.metaspacePreTokenizer("\u2581", "first", false), text.replaceAll("\u00BD", ""));
  const some = merges.slice(0, 500).filter((pair) => !pair.join("").includes("\n"));
  const pieces = some.map(([a, b]) => a + b);
  const tokens = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", ...byteTokens, ...pieces,
                  ...letters.filter((x) => x !== "\n" && x !== "\u672C")];
  const kept = tokens.filter((x, at) => tokens.indexOf(x) === at);
  const known = new Set(kept);
  return {
    version: "1.0", truncation: null, padding: null,
    added_tokens: ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"].map((x, id) => added(id, x)), normalizer: null,
    pre_tokenizer: { type: "Metaspace", replacement: "\u2581", prepend_scheme: "first", split: false },
    post_processor: { type: "TemplateProcessing",
      single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
      pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
      special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } } },
    decoder: { type: "Sequence", decoders: [
      { type: "Replace", pattern: { String: "\u2581" }, content: " " }, { type: "ByteFallback" }, { type: "Fuse" },
      { type: "Strip", content: " ", start: 1, stop: 0 }] },
    model: { type: "BPE", dropout: null, unk_token: "<unk>", continuing_subword_prefix: null, end_of_word_suffix: null,
             fuse_unk: true, byte_fallback: true, ignore_merges: false, vocab: numbered(kept),
             merges: some.filter((pair) => pair.every((x) => known.has(x))) },
  };
}

const texts = [
  "", " ", "  ", "the", " the", "  the", "the ", "the  ", "kato miren, solther!", "It's we'll IT'S", "a\nb\r\n\tc", "        foo();\n    }",
  "1 12 123 1234 12345 123456 1234567", "x1y22z333 4444", " 123 ,123", "x\u00B2\u00B3\u00B9 5\u00BC\u00BD\u00BE 12\u00B2", "\u00FCber na\u00EFve \u00E9t\u00E9 \u00F2\u00F3",
  "\u4E2D\u6587\u65E5\u672C\u8A9E", "\u043F\u0440\u0438\u0432\u0435\u0442", "\uD83D\uDE00 \uD83D\uDC69\u200D\uD83D\uDC69\u200D\uD83D\uDC67 e\u0301", "\u0E01\u0E02 \u0660\u0661\u0662\u0663 \u2167",
  "\u2581", "a\u2581b", "\u2581\u2581 the", "a  b   c    d", "<s>", "<s>the</s> the", "[INST] kato sol[/INST]the", " [INST] [INST]  the [/INST] ", "<unk> <0x41><0x0A>", "<s <s> </s",
  "<|endoftext|>kato<|endoftext|> the", "...!!!???--- $+<=>^~|` (a)", "\u201Cquoted\u201D \u2014 \u00AB\u00BB\u00A7", "a\u0000b\u007F", "\u00A0\u3000 \u2003x", "\uFFFD", "lorlorlorlorlorlorlorlorlorlorlorlorlorlorlorlorlor",
  "the".repeat(20) + " " + "quing chve ".repeat(8), "{}()<s/>->;,.", "0".repeat(10) + " " + "9".repeat(40),
];
const words = corpus();
for (let i = 0; i < 12; ++i) texts.push(words.slice(random(words.length), undefined).slice(0, 60 + random(120)));
for (let i = 0; i < 12; ++i) {
  texts.push(Array.from({ length: 30 }, () => pick([...new Set(words), "\u2581", "\u00BC", "\u{1F600}", " "])).join(""));
}
const isText = (x) => Buffer.from(x).toString() === x;

/// Ids of which some are no text: byte tokens that are cut, begin in the middle or follow each other.
const idLists = (first) => [
  [first + 0xe4, first + 0xb8, first + 0xad], [first + 0xe4, first + 0xb8], [first + 0xb8, first + 0xad], [first + 0x41, first + 0xff], [first + 0xff, first + 0x41],
  [first + 0xe4, first + 0xb8, 300], [300, first + 0xc3, first + 0xa9, 301], [first + 0xc3, first + 0xa9, first + 0xc3, 302], [first + 0x20, 300], [first + 0x20, first + 0x20, 310],
  [first + 0xf0, first + 0x9f, first + 0x98, first + 0x80, first + 0xf0, first + 0x9f], [first + 0xe2, first + 0x96, first + 0x81, 300], [0, 1, 2, 3], [1, 300], [300, 1, 300],
  ...Array.from({ length: 12 }, () => Array.from({ length: 6 }, () => (random(2) ? first + random(256) : 262 + random(400)))),
];

/// With these steps in the place of its own.
const variants = {
  "first": {},
  "first, split": { pre_tokenizer: { type: "Metaspace", replacement: "\u2581", prepend_scheme: "first", split: true } },
  "always": { pre_tokenizer: { type: "Metaspace", replacement: "\u2581", prepend_scheme: "always", split: false } },
  "always, split": { pre_tokenizer: { type: "Metaspace", replacement: "\u2581", prepend_scheme: "always", split: true } },
  "never": { pre_tokenizer: { type: "Metaspace", replacement: "\u2581", prepend_scheme: "never", split: false } },
  "never, split": { pre_tokenizer: { type: "Metaspace", replacement: "\u2581", prepend_scheme: "never", split: true } },
  "normalizers": {
    pre_tokenizer: null,
    normalizer: { type: "Sequence", normalizers: [{ type: "Prepend", prepend: "\u2581" }, { type: "Replace", pattern: { String: " " }, content: "\u2581" }] },
  },
};

async function results(json, variant) {
  const tokenizer = hf.Tokenizer.fromString(JSON.stringify(json));
  const rows = [];
  for (const text of texts.filter(isText)) {
    const ids = (await tokenizer.encode(text, null, { addSpecialTokens: true })).getIds();
    const plain = (await tokenizer.encode(text, null, { addSpecialTokens: false })).getIds();
    if (ids.slice(ids.length - plain.length).join() !== plain.join()) throw new Error(text);
    rows.push({ ...variant, text, ids: plain, special: ids.length - plain.length, decoded: await tokenizer.decode(plain, false) });
  }
  return [rows, tokenizer];
}

/// A GGUF file without tensors; metadata: [key, type, value], of which lists are arrays.
function gguf(file, metadata) {
  const parts = [Buffer.from("GGUF")];
  const number = (write, size, x) => { const b = Buffer.alloc(size); b[write](x); parts.push(b); };
  const u32 = (x) => number("writeUInt32LE", 4, x), u64 = (x) => number("writeBigUInt64LE", 8, BigInt(x));
  const string = (x) => { const b = Buffer.from(x); u64(b.length); parts.push(b); };
  const types = { u32: [4, u32], i32: [5, (x) => number("writeInt32LE", 4, x)], f32: [6, (x) => number("writeFloatLE", 4, x)],
                  bool: [7, (x) => number("writeUInt8", 1, x ? 1 : 0)], string: [8, string] };
  u32(3); u64(0); u64(metadata.length);
  for (const [key, type, value] of metadata) {
    string(key);
    const [code, write] = types[type];
    if (Array.isArray(value)) { u32(9); u32(code); u64(value.length); value.forEach(write); } else { u32(code); write(value); }
  }
  const size = parts.reduce((sum, x) => sum + x.length, 0);
  parts.push(Buffer.alloc((32 - (size % 32)) % 32));
  fs.writeFileSync(file, Buffer.concat(parts));
}
function asGguf(file, json, more) {
  const tokens = Object.keys(json.model.vocab).sort((a, b) => json.model.vocab[a] - json.model.vocab[b]);
  gguf(file, [["general.architecture", "string", "mamba"], ["tokenizer.ggml.tokens", "string", tokens], ...more(tokens)]);
}
const scored = (space, ties) => (tokens) => [
  ["tokenizer.ggml.model", "string", "llama"],
  ["tokenizer.ggml.scores", "f32", tokens.map((_, id) => (id < 261 ? 0 : ties ? -(id % 7) : 261 - id))],
  ["tokenizer.ggml.token_type", "i32", tokens.map((_, id) => (id === 0 ? 2 : id < 3 ? 3 : id < 5 ? 4 : id < 261 ? 6 : 1))],
  ["tokenizer.ggml.bos_token_id", "u32", 1], ["tokenizer.ggml.eos_token_id", "u32", 2], ["tokenizer.ggml.unknown_token_id", "u32", 0],
  ["tokenizer.ggml.add_bos_token", "bool", true], ["tokenizer.ggml.add_space_prefix", "bool", space],
];
function llama(file, variant, lists) {
  const good = texts.filter(isText);
  const requests = [...good.map((x) => `E ${Buffer.from(x).toString("hex") || "-"}`), ...lists.map((x) => `D ${x.join(" ")}`)];
  const run = spawnSync(llamaIds, [file], { input: requests.join("\n") + "\n", encoding: "utf8", stdio: ["pipe", "pipe", "inherit"] });
  if (run.status !== 0) throw new Error(`${llamaIds}: ${run.status}`);
  const lines = run.stdout.split("\n");
  return [...good.map((text, i) => ({ ...variant, text, ids: lines[i].split(" ").filter((x) => x).map(Number) })),
          ...lists.map((ids, i) => ({ ...variant, ids, bytes: lines[good.length + i] }))];
}

fs.mkdirSync(folder, { recursive: true });
const falconJson = falcon(words), pieceJson = sentencePiece(words);
save("falcon.json", falconJson);
save("sentencepiece.json", pieceJson);
saveLines("falcon.jsonl", (await results(falconJson, {}))[0]);
const rows = [];
for (const [variant, change] of Object.entries(variants)) {
  const [some, tokenizer] = await results({ ...pieceJson, ...change }, { variant });
  rows.push(...some);
  if (variant !== "first") continue;
  for (const ids of idLists(5)) rows.push({ variant, ids, decoded: await tokenizer.decode(ids, false) });
}
saveLines("sentencepiece.jsonl", rows);

const scratch = path.join(os.tmpdir(), `tokenizer-${process.pid}.gguf`), own = path.join(folder, "sentencepiece.gguf");
const compared = [];
asGguf(own, pieceJson, scored(true, false));
compared.push(...llama(own, { variant: "prefix" }, idLists(5)));
asGguf(scratch, pieceJson, scored(false, false));
compared.push(...llama(scratch, { variant: "no prefix" }, []));
asGguf(scratch, pieceJson, scored(true, true));
compared.push(...llama(scratch, { variant: "ties" }, []));
asGguf(scratch, falconJson, (tokens) => [
  ["tokenizer.ggml.model", "string", "gpt2"], ["tokenizer.ggml.pre", "string", "falcon"],
  ["tokenizer.ggml.token_type", "i32", tokens.map((_, id) => (id === 0 ? 3 : 1))], ["tokenizer.ggml.merges", "string", falconJson.model.merges]]);
compared.push(...llama(scratch, { variant: "falcon" }, []));
fs.unlinkSync(scratch);
saveLines("llama.jsonl", compared);

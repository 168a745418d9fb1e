"""Writes tests/data/tokenizers: small tokenizer.json files of every family, and what Hugging Face `tokenizers` does
with hard texts: ids, decoded text, pieces, normal forms. Run with the `tokenizers` of the reference environment."""

import collections
import copy
import hashlib
import json
import pathlib

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "tests" / "data" / "tokenizers"
SHARED = ROOT.parent / "shared"

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

SAMPLE = """The ridge ran north, and the river ran south; the walkers ran nowhere at all. They'd been told that
they'll see the summit by noon, but it's past two and we've only reached the hut. "Don't worry," said the guide,
"I'm sure that we're close: 3 miles, 1200 feet, 45 minutes." In 1987 the same path took 12345 steps.
The thin thread that the thrush threw through the thicket thrilled them. Rain, rain, and then more rain.
def ridge_point(flops, bytes):\n    if bytes == 0:\n        return None\n    return flops / bytes  # intensity
int main() { for (int i = 0; i < 10; ++i) { sum += i * i; } return sum; }
Der Weg führt über die Brücke. L'été dernier, nous étions déjà près du château. El niño comió una piña.
Дорога идёт вдоль реки, и река идёт вдоль дороги. Ο δρόμος περνά δίπλα από το ποτάμι.
山の上に小さな家がある。川はとても静かだ。山路很长,河水很清。길은 산을 따라 이어진다.
الطريق يمر بجانب النهر. הדרך עוברת ליד הנהר. ถนนเลียบแม่น้ำ। रास्ता नदी के किनारे है।
""" * 4

TEXTS = [
    "", " ", "  ", "\n", "a", "Hello, world!", " leading space", "trailing space ", "The ridge ran north.",
    "I'm sure they'll say we've won, it's done; he'd've gone. DON'T I'LL WE'RE", "'s't're've'm'll'd 'S'T", "'\u017f '\u017ftone",
    "0 1 12 123 1234 12345 1234567890 3.14 1,000,000", "x1y22z333", "a\tb\t\tc", "a\n\nb\n\n\nc", "a\r\nb\r\n\r\nc\rd",
    "   three   spaces   here   ", "tabs\t\t\tand  spaces \t mixed\n \n\t\n", "    indented:\n        more\n",
    "no\u00a0break\u00a0\u00a0space", "wide\u3000space\u3000", "thin\u2009space\u200bzero\u200cwidth\u200djoin\ufeffbom",
    "line\u2028sep\u2029para\u0085next", "mongolian\u180evowel", "under_score __init__ snake_case_name",
    "CamelCase HTTPServer iPhone McDonald ABCdef", "\u00e9 e\u0301 \u1e9b\u0323 \u212b A\u030a \uac00 \u1100\u1161 \ufb01 \u2460 \u00bd",
    "q\u0307\u0323 q\u0323\u0307 a\u0300\u0316\u0301\u0317\u0302", "\u0301\u0301\u0301 start", "\u0130stanbul \u0131 \u00df \u03a3\u03c2 \u01c5",
    "\U0001f600\U0001f603 \U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \u2764\ufe0f 1\ufe0f\u20e3",
    "\u5c71\u306e\u4e0a\u306b\u5c0f\u3055\u306a\u5bb6\u304c\u3042\u308b\u3002 \u6f22\u5b57", "\u6df7\u5408mixed\u6587\u5b57text123\uff11\uff12\uff13",
    "\uae38\uc740 \uc0b0\uc744 \ub530\ub77c", "\u0627\u0644\u0637\u0631\u064a\u0642 \u064a\u0645\u0631 \u0628\u0650\u0633\u0652\u0645\u0650", "\u05d4\u05d3\u05e8\u05da \u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd",
    "\u0e16\u0e19\u0e19\u0e40\u0e25\u0e35\u0e22\u0e1a\u0e41\u0e21\u0e48\u0e19\u0e49\u0e33", "\u0930\u093e\u0938\u094d\u0924\u093e \u0928\u0926\u0940 \u0915\u094d\u0937\u093f",
    "\u200frtl\u200e ltr \u202eoverride\u202c \u2067iso\u2069", "\u0661\u0662\u0663 \u0967\u0968\u0969 \u2167 \u00b2\u00b3",
    "\U0001d4d0\U0001d4d1 \U00020000\U0002a6d6 \U0010ffff \ufffd \ufffe", "\u0000nul\u0001\u001b[0m\u007f", "$%^&*()!@#+=[]{}|;:'\",.<>/?`~\\",
    "... --- ___ !!! ??? //// \\\\\\\\ ====", "https://example.org/a?b=c&d=%20#e user@host.com", "a/b//c///d\n/e/\n",
    "<s>", "</s>", "<unk>", "<s>text</s>", "a <s> b </s> c", "<|endoftext|>", "a<|endoftext|>b <|endoftext|> c",
    "<|endoftext|><|endoftext|>", "<|begin_of_text|>x<|end_of_text|>", "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext", "<<|endoftext|>>",
    "<strip>", "a  <lstrip>  b", "a  <rstrip>  b", "a \u3000<both>\u00a0\n b", "<both><both>  <both>", "word", "a word b", "words sword word.word _word word\u0301",
    "a normal b NORMAL c", "pad<lstrip>  <rstrip>  <lstrip>x", "\u2581", "\u2581\u2581a \u2581b", "a\u2581b", " \u2581 ", "<0x41><0x0A>", "<0xFF>", "<0xZZ> <0x4>",
    "a" * 200, "ab" * 150, "=" * 130, " " * 150, " " * 70 + "x", "\n" * 90, "1" * 100, "the" * 60, "\u00e9" * 80, "\U0001f600" * 30,
    "aaaaaaaaaaab aaab aab", "The thin thread that the thrush threw", "def f(x):\n\treturn x**2  # \u00bd\n", "L'\u00e9t\u00e9 \u00e9tait d\u00e9j\u00e0 pr\u00e8s",
    "\u0414\u043e\u0440\u043e\u0433\u0430 \u0438\u0434\u0451\u0442", "\u039f \u03b4\u03c1\u03cc\u03bc\u03bf\u03c2 \u03a0\u0395\u03a1\u039d\u0391", "unreachable token", "x y z", "one.two,three;four", "Hello\u0009\u000b\u000c\u001c\u001d World",
]


def added(content, **flags):
    return AddedToken(content, **{"normalized": False, "special": True, **flags})


SPECIALS = ["<unk>", "<s>", "</s>"]


def frequent(text, limit):
    """The text in its `limit` most frequent characters; the trainer's own limit breaks ties at random."""
    counts = collections.Counter(text)
    kept = set(sorted(counts, key=lambda c: (-counts[c], c))[:limit]) | {"\n"}
    return "".join(c for c in text if c in kept)


def train(tokenizer, vocab_size, specials=(), alphabet=(), limit=None):
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(specials), show_progress=False,
                                  initial_alphabet=list(alphabet))
    text = frequent(SAMPLE, limit) if limit else SAMPLE
    tokenizer.train_from_iterator(text.split("\n"), trainer)
    return tokenizer


def train_bytes(pre_tokenizer, specials, vocab_size=520, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    train(tokenizer, vocab_size, specials, sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def split_bytes(*patterns):
    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    return pre_tokenizers.Sequence(splits + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def template(bos, bos_id, eos=None, eos_id=None):
    single = f"{bos} $A" + (f" {eos}" if eos else "")
    specials = [(bos, bos_id)] + ([(eos, eos_id)] if eos else [])
    return processors.TemplateProcessing(single=single, pair=f"{bos} $A {bos}:1 $B:1", special_tokens=specials)


def gpt2():
    return train_bytes(pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"])


def gpt2_prefix_space():
    tokenizer = train_bytes(pre_tokenizers.ByteLevel(add_prefix_space=True), ["<|endoftext|>"], 400)
    tokenizer.add_tokens([
        AddedToken("<lstrip>", lstrip=True, normalized=False), AddedToken("<rstrip>", rstrip=True, normalized=False),
        AddedToken("<both>", lstrip=True, rstrip=True, normalized=True), AddedToken("word", single_word=True, normalized=False),
        AddedToken("NORMAL", normalized=True), AddedToken("<strip>", lstrip=True, normalized=False), AddedToken("<<", normalized=True)])
    return tokenizer


def llama3():
    tokenizer = train_bytes(split_bytes(LLAMA3), [])
    data = json.loads(tokenizer.to_str())
    vocab = data["model"]["vocab"]
    for word in ["\u0120unreachable", "unreachable", "\u0120thicket", "1234", "\u00c3\u00a9t"]:  # no merges lead there
        vocab.setdefault(word, len(vocab))
    data["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.add_special_tokens([added("<|begin_of_text|>"), added("<|end_of_text|>")])
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template("<|begin_of_text|>", bos)])
    return tokenizer


def qwen2():
    tokenizer = train_bytes(split_bytes(QWEN2), [], normalizer=normalizers.NFC())
    tokenizer.add_special_tokens([added("<|endoftext|>"), added("<|im_start|>"), added("<|im_end|>")])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("e\u0301t", normalized=True)])
    return tokenizer


def tekken():
    return train_bytes(split_bytes(TEKKEN), SPECIALS, 480)


def deepseek():
    return train_bytes(split_bytes(r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", DEEPSEEK), SPECIALS, 420)


def o200k():
    return train_bytes(split_bytes(O200K), ["<|endoftext|>"], 420)


def falcon():
    steps = [pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False),
             pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")]
    return train_bytes(pre_tokenizers.Sequence(steps), ["<|endoftext|>"], 420)


def starcoder():
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return train_bytes(pre_tokenizers.Sequence(steps), ["<|endoftext|>"], 420)


def byte_fallback_json(pre_tokenizer, normalizer, decoder, merge_spaces, vocab_size=620, limit=90):
    """A SentencePiece-style file: <unk> <s> </s>, 256 byte tokens, then what training finds."""
    trained = Tokenizer(models.BPE())
    if normalizer:
        trained.normalizer = normalizer
    if pre_tokenizer:
        trained.pre_tokenizer = pre_tokenizer
    elif not merge_spaces:  # as SentencePiece trains: no token crosses a space
        trained.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    train(trained, vocab_size - 259, limit=limit)
    data = json.loads(trained.to_str())
    words = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    vocab = SPECIALS + [f"<0x{b:02X}>" for b in range(256)] + words
    data["model"].update(vocab={word: i for i, word in enumerate(vocab)}, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    data["pre_tokenizer"] = json.loads(pre_tokenizer.__getstate__()) if pre_tokenizer else None
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.add_special_tokens([added(t) for t in SPECIALS])
    tokenizer.post_processor = template("<s>", 1)
    tokenizer.decoder = decoder
    return tokenizer


def sentencepiece_decoder():
    return decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


def llama2_base():
    normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return byte_fallback_json(None, normalizer, sentencepiece_decoder(), False)


def llama2():
    tokenizer = llama2_base()
    tokenizer.add_tokens([AddedToken("NORMAL", normalized=True)])
    return tokenizer


def llama2_partial_bytes():
    """Without the bytes that begin Asian scripts: those characters are unknown, while emoji still fall back."""
    data = json.loads(llama2_base().to_str())
    gone = {f"<0x{b:02X}>" for b in range(0xE0, 0xEA)}
    data["model"]["vocab"] = {word: i for word, i in data["model"]["vocab"].items() if word not in gone}
    return Tokenizer.from_str(json.dumps(data))


def gemma():
    tokenizer = byte_fallback_json(pre_tokenizers.Split(" ", "merged_with_previous"), normalizers.Replace(" ", "\u2581"),
                                   decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]), True)
    return tokenizer


def metaspace(scheme, split):
    pre = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme, split=split)
    tokenizer = byte_fallback_json(pre, None, decoders.Metaspace(replacement="\u2581", prepend_scheme=scheme), False, 560)
    tokenizer.add_tokens([AddedToken("word", single_word=True, normalized=False), AddedToken("<lstrip>", lstrip=True, normalized=False)])
    return tokenizer


def unknown(fuse):
    """Characters only, no bytes, tokens with spaces in them: merges must be pairs."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=fuse))
    train(tokenizer, 300, ["<unk>"], limit=45)
    return tokenizer


def no_unknown():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    train(tokenizer, 260, limit=60)
    tokenizer.post_processor = processors.RobertaProcessing(sep=("e", tokenizer.token_to_id("e")), cls_token=("a", tokenizer.token_to_id("a")))
    return tokenizer


FAMILIES = {
    "gpt2": gpt2, "gpt2_prefix_space": gpt2_prefix_space, "llama3": llama3, "qwen2": qwen2, "tekken": tekken, "deepseek": deepseek,
    "o200k": o200k, "falcon": falcon, "starcoder": starcoder, "llama2": llama2, "llama2_partial_bytes": llama2_partial_bytes, "gemma": gemma,
    "metaspace_first": lambda: metaspace("first", True), "metaspace_first_whole": lambda: metaspace("first", False),
    "metaspace_always": lambda: metaspace("always", True), "metaspace_never": lambda: metaspace("never", False),
    "unknown": lambda: unknown(False), "unknown_fused": lambda: unknown(True), "no_unknown": no_unknown,
}


def legacy_merges(data):
    old = copy.deepcopy(data)
    old["model"]["merges"] = ["#version: 0.2"] + [" ".join(pair) for pair in old["model"]["merges"]]
    return old


def expected(tokenizer, text):
    plain = tokenizer.encode(text, add_special_tokens=False).ids
    special = tokenizer.encode(text, add_special_tokens=True).ids
    out = {"ids": plain, "decoded": tokenizer.decode(plain), "with_special": tokenizer.decode(special, skip_special_tokens=False)}
    if special != plain:
        out["special_ids"] = special
    return out


def partial_decodes(tokenizer):
    """Id lists that cut characters: every prefix of a text's ids, and a few odd ones."""
    ids = tokenizer.encode("\U0001f600\u6f22 \u00e9<s>a", add_special_tokens=True).ids
    lists = [ids[i:j] for i in range(0, len(ids), 2) for j in range(i, len(ids) + 1, 3)] + [list(range(0, tokenizer.get_vocab_size(), 7))]
    return [{"ids": x, "decoded": tokenizer.decode(x), "with_special": tokenizer.decode(x, skip_special_tokens=False)} for x in lists]


def dump(name, value):
    path = OUT / name
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")
    assert path.stat().st_size < 250_000, (name, path.stat().st_size)


def write_families():
    for name, make in FAMILIES.items():
        made = make()
        data = json.loads(made.to_str())
        tokenizer = Tokenizer.from_str(json.dumps(data))
        (OUT / f"{name}.json").write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n")
        assert (OUT / f"{name}.json").stat().st_size < 60_000, name
        dump(f"{name}.cases.json", {"vocab_size": max(tokenizer.get_vocab().values()) + 1,
                                    "cases": [expected(tokenizer, t) for t in TEXTS], "partial": partial_decodes(tokenizer)})
        if name in ("gpt2", "llama2"):
            (OUT / f"{name}.legacy_merges.json").write_text(json.dumps(legacy_merges(data), ensure_ascii=False, separators=(",", ":")) + "\n")
    dump("texts.json", TEXTS)


def write_steps():
    """Single steps: what each normalizer, pre-tokenizer and decoder makes of the texts."""
    def state(step):
        return json.loads(step.__getstate__())

    texts = [t for t in TEXTS if len(t) < 60]
    steps = {"normalizers": [], "pre_tokenizers": [], "decoders": []}
    n, p, d = normalizers, pre_tokenizers, decoders
    for step in [n.NFC(), n.NFD(), n.NFKC(), n.NFKD(), n.Lowercase(), n.Strip(), n.Strip(left=True, right=False), n.Prepend("\u2581"),
                 n.Replace("a", "bb"), n.Replace(Regex(r"\s+"), " "), n.Replace(Regex(r"[aeiou]*"), "-"), n.ByteLevel(),
                 n.Sequence([n.Replace(Regex(r"^ "), ""), n.Prepend("x")])]:
        steps["normalizers"].append({"step": state(step), "out": [step.normalize_str(t) for t in texts]})
    behaviors = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]
    some = [p.Split(Regex(r"[\s.,]"), b, invert=i) for b in behaviors for i in (False, True)] + [p.Split(" ", b) for b in behaviors]
    some += [p.Split(Regex(r), "isolated") for r in (LLAMA3, QWEN2, TEKKEN, DEEPSEEK, O200K, r"\w+", r"\W+", r"\b", r"\B\w", r"[\w-]+", r"[^\s]+",
                                                   r"(?=[A-Z])", r"x*", r"^.", r".$", r"\u0041|\x41", r"(?i)THE|a", r"\R", r"(a)\1", r"\d{2,3}?", r"{")]
    some += [p.ByteLevel(add_prefix_space=True), p.ByteLevel(use_regex=False), p.Digits(True), p.Digits(False), p.Punctuation(), p.Whitespace(),
             p.WhitespaceSplit()] + [p.Punctuation(b) for b in behaviors]
    some += [p.Metaspace("\u2581", s, k) for s in ("always", "first", "never") for k in (True, False)]
    some += [p.Sequence([p.WhitespaceSplit(), p.Metaspace("\u2581", "first")]), p.Sequence([p.Metaspace("_", "always"), p.Digits(True)])]
    for step in some:
        steps["pre_tokenizers"].append({"step": state(step), "out": [[s for s, _ in step.pre_tokenize_str(t)] for t in texts]})
    tokens = [["\u2581a", "b\u2581c", "\u2581"], ["<0xE2>", "<0x96>", "<0x81>", "a"], ["<0xE2>", "x", "<0xFF>", "<0x41>"], ["<0x41>", "<0xff>", "<0xg0>", "<0x4>"],
              ["  a ", " b", "  "], [" ", " x"], ["\u0120a", "\u00c3", "\u00a9", " raw", "\u00e9"], [], [""], ["\u2581\u2581", "\u2581"], ["\u00e2", "\u0138", "\u0120"]]
    for step in [d.ByteLevel(), d.Replace("\u2581", " "), d.Replace(Regex("[ab]"), ""), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0), d.Strip(" ", 2, 0),
                 d.Metaspace(), d.Metaspace(prepend_scheme="never"), sentencepiece_decoder(), d.Sequence([d.Fuse(), d.Replace("a", "")]),
                 d.Sequence([d.ByteFallback(), d.Metaspace()]), d.Sequence([d.Fuse(), d.Strip("\u2581", 2, 0)])]:
        steps["decoders"].append({"step": state(step), "out": [step.decode(t) for t in tokens]})
    dump("steps.json", {"texts": texts, "tokens": tokens, **steps})


def write_trainer():
    """The reference of train_byte_level_bpe: its text, and the merges that the reference trainer finds."""
    text = "\n".join(sorted(set(SAMPLE.split("\n"))))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<|endoftext|>", "<pad>"], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator([text], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    dump("trainer.json", {"text": text, "vocab_size": 420, "special_tokens": ["<|endoftext|>", "<pad>"], "vocab": model["vocab"], "merges": model["merges"]})


def digest(ids):
    return hashlib.sha256(b"".join(i.to_bytes(4, "little") for i in ids)).hexdigest()


def write_shared():
    """Tokenizers that are not part of the project: ids of the first 20 KB, and of all, of WikiText-2's test text."""
    text = (SHARED / "data" / "wikitext-2" / "test.txt").read_bytes().decode()
    out = {}
    for name in ["tokenizers/gpt2", "models/stories260k"]:
        tokenizer = Tokenizer.from_file(str(SHARED / name / "tokenizer.json"))
        head = tokenizer.encode(text[:20000], add_special_tokens=True).ids
        whole = tokenizer.encode(text, add_special_tokens=False).ids
        out[name] = {"characters": 20000, "ids": head, "whole_count": len(whole), "whole_first": whole[:20], "whole_last": whole[-20:],
                     "whole_weighted_sum": sum((i % 65521 + 1) * v for i, v in enumerate(whole)) % (1 << 61), "whole_sha256": digest(whole)}
    dump("shared.json", out)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    write_families()
    write_steps()
    write_trainer()
    if SHARED.exists():
        write_shared()
    (OUT / "README.md").write_text(f"Written by tests/reference/make_tokenizer_fixtures.py with tokenizers {tokenizers.__version__}.\n")

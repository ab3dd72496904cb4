"""A tiny random model, a small text, and the command that trains on them."""

import importlib.util
import random
import signal

import pytest
import torch

WORDS = [a + b for a in "bdfglmnprst" for b in ("a", "e", "i", "o", "u", "an", "en", "or")]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
EXTRA = ("transformers", "accelerate", "safetensors", "rich", "typer", "tensorboard", "matplotlib")


def pytest_pycollect_makemodule():
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the extra `train` is not installed: {missing}", allow_module_level=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The path of a two-layer BERT with random weights and a vocabulary of whole words."""
    import transformers

    folder = tmp_path_factory.mktemp("model")
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        initializer_range=0.2,
    )
    transformers.BertModel(config).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = transformers.BertTokenizerFast(vocab=vocabulary)  # type: ignore[attr-defined]
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def causal_model(tmp_path_factory):
    """The path of a two-layer Llama with random weights, the same words and no padding token."""
    import tokenizers
    import transformers

    folder = tmp_path_factory.mktemp("causal")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1 + len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        max_position_embeddings=24,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(["[UNK]", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", padding_side="left"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def special():
    """Tokens below this number are no words."""
    return len(SPECIAL)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of documents of random words, one of them shorter than a passage."""
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    for number, length in enumerate((700, 500, 9)):
        words = " ".join(rng.choice(WORDS) for _ in range(length))
        (folder / f"{number}.txt").write_text(words)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sizes this small lose more by waiting for other threads than they win."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_plots(monkeypatch):
    """Drawing takes longer than all the rest of a tiny run."""
    from fused_mi.train import plots

    monkeypatch.setattr(plots, "_save", lambda figure, path: path.write_bytes(b"no plot"))


@pytest.fixture
def run(model, corpus, capsys):
    """Runs ``fused-mi train`` in this process; returns exit code and the lines on stderr."""
    from fused_mi.train.cli import app

    def call(output, *more, defaults=True):
        base = ["train", "--output", str(output)]
        if defaults:
            base += ["--model", str(model), "--text", str(corpus), "--batch-size", "8"]
            base += ["--seq-len", "12", "--steps", "4", "--eval-passages", "8"]
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(SystemExit) as stop:
            app([*base, *map(str, more)])
        assert signal.getsignal(signal.SIGINT) is before
        return stop.value.code, capsys.readouterr().err.strip().splitlines()

    return call


@pytest.fixture(scope="module")
def parts(model, corpus):
    """Encoder, and the passages for training, validation and test."""
    from fused_mi.train import loading, text

    found, tokenizer = loading.load(str(model), "cpu", "float32", 12)
    passages = text.cut(tokenizer, text.read_documents(str(corpus)), 12)
    return found, *text.split(passages, 0, 8)

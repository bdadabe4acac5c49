"""Models of transformers and sentence-transformers with sparse layers: made, saved and loaded as others are."""

import json

import pytest
import torch
from torch import nn

from sparse_xmc.models import (
    FixedFanInLinear,
    HeadTailLinear,
    QuantizedFixedFanInLinear,
    SparseInputLinear,
    sparsify_,
)
from sparse_xmc.models.checked_indices import CheckedIndices
from sparse_xmc.ops._arguments import validate_indices
from tests.conftest import INTERPRETING

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(INTERPRETING, reason="models of other packages, on the CPU kernels")

D, L, K = 32, 50, 8


def config(**options):
    sizes = {"hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return transformers.BertConfig(vocab_size=100, **sizes, **options)


class WithHeads(transformers.BertPreTrainedModel):
    """Somebody's model class: new heads beside a pretrained encoder."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = transformers.BertModel(config)
        self.dense = nn.Linear(D, L)
        self.fixed = FixedFanInLinear(D, 5000, K, prior=5)
        self.grouped = FixedFanInLinear(D, L, K, False, group_size=16)
        self.wide = FixedFanInLinear(70_000, L, 3)
        self.head_tail = HeadTailLinear(D, L, K, num_head=5)
        self.terms = SparseInputLinear(D, L, K)
        self.eight_bit = QuantizedFixedFanInLinear(D, L, K)
        self.post_init()


def same(a, b):
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype and torch.equal(value.double(), right[name].double()), name


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    transformers.BertModel(config()).save_pretrained(folder)
    return folder


def test_new_heads_in_from_pretrained_are_drawn(encoder):
    torch.manual_seed(0)
    model = WithHeads.from_pretrained(encoder)
    for layer in model.modules():
        if isinstance(layer, CheckedIndices):
            validate_indices(layer.indices, layer.in_features)
            layer.checked_indices()
    assert all(tensor.double().isfinite().all() for tensor in model.state_dict().values())
    assert 0.5 * K**-0.5 < model.fixed.weight.abs().max() <= K**-0.5
    assert len({tuple(row) for row in model.fixed.indices.tolist()}) > 4000  # drawn, not all alike
    torch.testing.assert_close(model.fixed.bias.exp(), torch.full((5000,), 5 / 4995))
    assert not model.head_tail.tail.bias.any() and model.fixed(torch.ones(2, D)).isfinite().all()
    torch.manual_seed(0)
    same(model, WithHeads.from_pretrained(encoder))
    torch.manual_seed(1)
    assert not torch.equal(model.fixed.indices, WithHeads.from_pretrained(encoder).fixed.indices)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_heads_that_were_saved_are_loaded(encoder, tmp_path, dtype):
    model = WithHeads.from_pretrained(encoder)
    if dtype is not None:
        model.to(dtype)
    model.save_pretrained(tmp_path)
    again, report = WithHeads.from_pretrained(tmp_path, output_loading_info=True, dtype=dtype or torch.float32)
    assert not any(report.values()), report
    same(model, again)


def test_what_a_checkpoint_lacks_is_drawn_and_the_rest_is_loaded(encoder, tmp_path):
    model = WithHeads.from_pretrained(encoder)
    state = {name: value for name, value in model.state_dict().items() if name != "fixed.bias"}
    model.save_pretrained(tmp_path, state_dict=state)
    with torch.no_grad():
        model.fixed.bias.fill_(model.fixed.bias[0])
    same(model, WithHeads.from_pretrained(tmp_path))


@pytest.mark.parametrize("name", ["classifier", "bert.encoder.layer.0.output.dense"])
@pytest.mark.parametrize("group_size", [1, 16])
def test_a_sparsified_model_comes_back(tmp_path, name, group_size):
    model = transformers.BertForSequenceClassification(config(num_labels=L))
    sparsify_(model, name, fan_in=K, group_size=group_size).eval()
    model.save_pretrained(tmp_path)
    entry = {"fan_in": K, "group_size": group_size}
    assert json.loads((tmp_path / "config.json").read_text())["sparse_xmc"] == {name: entry}
    ids = torch.arange(12).view(2, 6)
    for auto in (transformers.BertForSequenceClassification, transformers.AutoModelForSequenceClassification):
        again, report = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values()), report
        same(model, again)
        assert type(again.get_submodule(name)) is FixedFanInLinear
        assert torch.equal(model(ids).logits, again.eval()(ids).logits)
    with pytest.raises(TypeError, match="must be a plain torch.nn.Linear"):
        sparsify_(again, name, fan_in=2)


def test_several_layers_and_a_layer_put_back(tmp_path):
    model = transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(num_labels=L, **config().to_diff_dict() | {"model_type": "roberta"})
    )
    sparsify_(model, "classifier.out_proj", fan_in=K)
    sparsify_(model, "classifier.dense", fan_in=3)
    dense = model.classifier.out_proj.to_dense()
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    same(model, again)
    again.classifier.out_proj = dense  # a layer that is put in later stays what it is
    assert again.classifier.out_proj is dense


def test_a_model_made_from_the_configuration_is_sparse():
    model = sparsify_(transformers.BertForSequenceClassification(config(num_labels=L)), "classifier", fan_in=K)
    made = transformers.AutoModelForSequenceClassification.from_config(model.config)
    assert type(made.classifier) is FixedFanInLinear and made.classifier.fan_in == K
    assert made.classifier.weight.isfinite().all() and made.classifier.checked_indices().shape == (L, K)


def test_other_models_have_no_entry():
    plain = nn.Sequential(nn.Linear(D, L))
    sparsify_(plain, "0", fan_in=K)
    assert not hasattr(transformers.BertModel(config()).config, "sparse_xmc")


def test_sentence_transformers(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    models = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3, "cat": 4, "dog": 5}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    options = {"unk_token": "[UNK]", "pad_token": "[PAD]", "model_max_length": 32}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options).save_pretrained(tmp_path / "bert")
    transformers.BertModel(config()).save_pretrained(tmp_path / "bert")
    inner = models.Transformer(str(tmp_path / "bert"))
    dense = models.Dense(D, L, activation_function=nn.Tanh(), use_residual=True)
    model = sentence_transformers.SentenceTransformer(modules=[inner, models.Pooling(D), dense], device="cpu")
    name = next(n for n, m in model.named_modules() if n.endswith("output.dense") and n.startswith("0."))
    sparsify_(model, "2.linear", fan_in=K, group_size=4)
    sparsify_(model, name, fan_in=5)
    vectors = model.encode(["good cat", "bad"])
    model.save(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="trust_remote_code=True"):  # as for every module that is not its own
        sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    same(model, again)
    assert type(again[2].linear) is FixedFanInLinear and again[2].linear.group_size == 4
    assert (again.encode(["good cat", "bad"]) == vectors).all()


@pytest.mark.parametrize(
    "options",
    [{}, {"optim": "adafactor"}, {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}],
    ids=["best", "adafactor", "checkpointing"],
)
@pytest.mark.parametrize("kind", ["sparsified", "own head"])
def test_the_trainer_loads_its_best_model_and_goes_on(kind, options, tmp_path):
    torch.manual_seed(0)
    of_labels = config(num_labels=20, problem_type="multi_label_classification")
    model = transformers.BertForSequenceClassification(of_labels) if kind == "sparsified" else Summing(of_labels)
    if kind == "sparsified":
        sparsify_(model, "classifier", K, prior=2)
    rows = [{"input_ids": torch.arange(6) * i % 100, "labels": torch.eye(20)[i]} for i in range(8)]
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=2, per_device_train_batch_size=4, eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True, learning_rate=3e-3, report_to=[], use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    before = model.classifier.weight.detach().clone()
    trainer.train()
    assert not torch.equal(model.classifier.weight, before)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model(str(tmp_path / "model"))
    same(type(model).from_pretrained(tmp_path / "model"), model)


class Summing(transformers.BertPreTrainedModel):
    """A head of one's own, trained by its fused loss."""

    supports_gradient_checkpointing = True

    def __init__(self, config):
        super().__init__(config)
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.classifier = FixedFanInLinear(D, config.num_labels, K, prior=2)
        self.post_init()

    def forward(self, input_ids, labels=None):
        x = self.bert(input_ids).last_hidden_state.mean(1)
        loss = {} if labels is None else {"loss": self.classifier.loss(x, labels)}
        return {**loss, "logits": self.classifier(x)}

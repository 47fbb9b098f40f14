"""BERT (Devlin et al. 2019): `BertForPreTraining`; without one of its heads `BertForMaskedLM` or `BertForNextSentencePrediction`, without
both `BertModel`, as embedding models are stored. Linear layers are stored output first."""

from qianyi.config.schema import ModelConfig
from qianyi.export.families.family import ACTIVATIONS, Family, Json, need, require, their_activation
from qianyi.export.names import Entry, Table

_ARCHITECTURES = {
    (True, True): "BertForPreTraining",
    (True, False): "BertForMaskedLM",
    (False, True): "BertForNextSentencePrediction",
    (False, False): "BertModel",
}
"""By the heads: of masked tokens, of sentences."""


def table(m: ModelConfig) -> Table:
    h = "bert.encoder.layer.{layer}."
    return (
        Entry("bert.embeddings.word_embeddings.weight", ("embedding/tokens",), "V D -> V D"),
        Entry("bert.embeddings.position_embeddings.weight", ("embedding/positions",), "T D -> T D"),
        Entry("bert.embeddings.token_type_embeddings.weight", ("embedding/segments",), "S D -> S D"),
        *_norm("bert.embeddings.LayerNorm", "embedding/norm"),
        Entry(h + "attention.self.query.weight", ("blocks/attn/query",), "D H K -> (H K) D"),
        Entry(h + "attention.self.query.bias", ("blocks/attn/query_bias",), "H K -> (H K)"),
        Entry(h + "attention.self.key.weight", ("blocks/attn/key",), "D H K -> (H K) D"),
        Entry(h + "attention.self.key.bias", ("blocks/attn/key_bias",), "H K -> (H K)"),
        Entry(h + "attention.self.value.weight", ("blocks/attn/value",), "D H K -> (H K) D"),
        Entry(h + "attention.self.value.bias", ("blocks/attn/value_bias",), "H K -> (H K)"),
        Entry(h + "attention.output.dense.weight", ("blocks/attn/out",), "H K D -> D (H K)"),
        Entry(h + "attention.output.dense.bias", ("blocks/attn/out_bias",), "D -> D"),
        *_norm(h + "attention.output.LayerNorm", "blocks/attn_norm"),
        Entry(h + "intermediate.dense.weight", ("blocks/mlp/up",), "D F -> F D"),
        Entry(h + "intermediate.dense.bias", ("blocks/mlp/up_bias",), "F -> F"),
        Entry(h + "output.dense.weight", ("blocks/mlp/down",), "F D -> D F"),
        Entry(h + "output.dense.bias", ("blocks/mlp/down_bias",), "D -> D"),
        *_norm(h + "output.LayerNorm", "blocks/mlp_norm"),
        *(_mlm_head() if m.mlm_head else ()),
        *(_sentence_head() if m.sentence_head else ()),
    )


def _norm(theirs: str, ours: str) -> Table:
    return (
        Entry(f"{theirs}.weight", (f"{ours}/scale",), "D -> D"),
        Entry(f"{theirs}.bias", (f"{ours}/bias",), "D -> D"),
    )


def _mlm_head() -> Table:
    return (
        Entry("cls.predictions.transform.dense.weight", ("head/transform",), "D E -> E D"),
        Entry("cls.predictions.transform.dense.bias", ("head/transform_bias",), "E -> E"),
        *_norm("cls.predictions.transform.LayerNorm", "head/norm"),
        Entry("cls.predictions.bias", ("head/bias",), "V -> V"),
    )


def _sentence_head() -> Table:
    return (
        Entry("bert.pooler.dense.weight", ("sentence/pool",), "D E -> E D"),
        Entry("bert.pooler.dense.bias", ("sentence/pool_bias",), "E -> E"),
        Entry("cls.seq_relationship.weight", ("sentence/out",), "D N -> N D"),
        Entry("cls.seq_relationship.bias", ("sentence/out_bias",), "N -> N"),
    )


def model_config(hf: Json) -> ModelConfig:
    require(hf, "hidden_act", *ACTIVATIONS)
    require(hf, "position_embedding_type", "absolute")
    require(hf, "is_decoder", False)
    require(hf, "tie_word_embeddings", True)
    architecture = (hf.get("architectures") or ["BertModel"])[0]
    require({"architectures": architecture}, "architectures", *_ARCHITECTURES.values())
    mlm_head, sentence_head = next(heads for heads, name in _ARCHITECTURES.items() if name == architecture)
    return ModelConfig(
        kind="encoder",
        vocab_size=need(hf, "vocab_size"),
        n_layers=need(hf, "num_hidden_layers"),
        d_model=need(hf, "hidden_size"),
        n_heads=need(hf, "num_attention_heads"),
        d_ff=need(hf, "intermediate_size"),
        max_seq_len=need(hf, "max_position_embeddings"),
        norm_at="post",
        norm_eps=hf.get("layer_norm_eps", 1e-12),
        mlp=ACTIVATIONS[hf.get("hidden_act", "gelu")],
        segments=hf.get("type_vocab_size", 2),
        embedding_norm=True,
        mlm_head=mlm_head,
        sentence_head=sentence_head,
        init="normal",
        init_std=hf.get("initializer_range", 0.02),
    )


def hf_config(m: ModelConfig) -> Json:
    return {
        "model_type": "bert",
        "architectures": [_ARCHITECTURES[m.mlm_head, m.sentence_head]],
        "vocab_size": m.vocab_size,
        "num_hidden_layers": m.n_layers,
        "hidden_size": m.d_model,
        "num_attention_heads": m.n_heads,
        "intermediate_size": m.d_hidden,
        "max_position_embeddings": m.max_seq_len,
        "layer_norm_eps": m.norm_eps,
        "hidden_act": their_activation(m),
        "type_vocab_size": max(m.segments, 1),
        "initializer_range": m.init_std,
        "tie_word_embeddings": True,
    }


FAMILY = Family(
    name="BERT",
    model_type="bert",
    table=table,
    model_config=model_config,
    hf_config=hf_config,
    base="bert.",
    # A model that was stored without its heads keeps the layer before the sentence head.
    ignored=("bert.embeddings.position_ids", "cls.predictions.decoder.*", "bert.pooler.dense.*"),
)

"""SentencePiece models as fast tokenizers with the special tokens of an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdcore.errors import DataError

_SPACE = "▁"
_UNIGRAM, _BPE = 1, 2  # trainer_spec.model_type
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # pieces' types

# Candidate pieces of each role, in order of preference; if a model has none, the first one is appended.
_ROLE_PIECES = {
    "cls_token": ("[CLS]", "<cls>", "<s>"),
    "sep_token": ("[SEP]", "<sep>", "</s>"),
    "pad_token": ("[PAD]", "<pad>"),
    "mask_token": ("[MASK]", "<mask>"),
}


def convert_sentencepiece(path: Path) -> Any:
    """Turn a SentencePiece unigram or BPE model into a `transformers` fast tokenizer.

    Pieces keep their ids. `[CLS]`, `[SEP]`, `[PAD]` and `[MASK]` are the model's own pieces if it has them (possibly
    spelled `<cls>`, `<s>` and so on); missing ones are appended after its last piece. Models that number their pieces
    differently from their SentencePiece file (such as XLM-R) must be loaded from their folder instead.

    Raises:
        DataError: the file is not a SentencePiece unigram or BPE model.
    """
    from transformers import PreTrainedTokenizerFast

    proto = _read(path)
    backend = _backend(proto)
    pieces = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    roles = {role: next((name for name in names if name in pieces), names[0]) for role, names in _ROLE_PIECES.items()}
    backend.add_special_tokens(list(roles.values()))
    backend.post_processor = _template(backend, roles["cls_token"], roles["sep_token"])
    unknown = next(piece.piece for piece in proto.pieces if piece.type == _UNKNOWN)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unknown, **roles)


def _read(path: Path) -> Any:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise _unusable(path, "is not a SentencePiece model") from error
    if not any(piece.type == _UNKNOWN for piece in proto.pieces):
        raise _unusable(path, "is not a SentencePiece model: it has no piece for unknown text")
    if proto.trainer_spec.model_type not in (_UNIGRAM, _BPE):
        raise _unusable(path, "is a SentencePiece model of an unsupported type (words or characters)")
    if proto.trainer_spec.treat_whitespace_as_suffix:
        raise _unusable(path, "is a SentencePiece model with white space after words (treat_whitespace_as_suffix)")
    if proto.trainer_spec.model_type == _BPE and any(piece.type == _USER_DEFINED for piece in proto.pieces):
        raise _unusable(path, "is a SentencePiece BPE model with symbols of its user (user_defined_symbols)")
    return proto


def _backend(proto: Any) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    unknown = next(index for index, piece in enumerate(proto.pieces) if piece.type == _UNKNOWN)
    byte_fallback = bool(proto.trainer_spec.byte_fallback)
    if proto.trainer_spec.model_type == _UNIGRAM:
        scores = [piece.score for piece in proto.pieces if piece.type == _NORMAL]
        vocabulary = [
            # SentencePiece prefers its user-defined symbols to their characters in the same way.
            (piece.piece, max(len(piece.piece) * max(scores) - 0.1, min(scores)))
            if piece.type == _USER_DEFINED
            else (piece.piece, piece.score)
            for piece in proto.pieces
        ]
        backend = Tokenizer(models.Unigram(vocabulary, unk_id=unknown, byte_fallback=byte_fallback))
    else:
        backend = Tokenizer(
            models.BPE(
                {piece.piece: index for index, piece in enumerate(proto.pieces)},
                _merges(proto),
                unk_token=proto.pieces[unknown].piece,
                fuse_unk=True,
                byte_fallback=byte_fallback,
            )
        )
    backend.add_tokens(
        [AddedToken(piece.piece, normalized=False, special=True) for piece in proto.pieces if piece.type == _CONTROL]
    )
    steps: list[Any] = []
    if proto.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap))
    # A document's paragraphs are separated by newlines, which a model trained on lines has never seen.
    steps.append(normalizers.Replace("\n", " "))
    if proto.normalizer_spec.remove_extra_whitespaces:
        steps.append(normalizers.Strip())
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    backend.normalizer = normalizers.Sequence(steps)
    scheme = "always" if proto.normalizer_spec.add_dummy_prefix else "never"
    split = not any(_SPACE in piece.piece[1:] for piece in proto.pieces)  # otherwise pieces span several words
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme, split=split)
    if byte_fallback:
        spaces = decoders.Replace(_SPACE, " ")
        prefix = [decoders.Strip(" ", 1, 0)] if proto.normalizer_spec.add_dummy_prefix else []
        backend.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), *prefix])
    else:
        backend.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme=scheme)
    return backend


def _merges(proto: Any) -> list[tuple[str, str]]:
    """List the pairs that BPE merges, best piece first. SentencePiece stores pieces with scores instead of pairs."""
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type not in (_UNKNOWN, _CONTROL)}
    order = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    found = [
        (-score, order[piece[:cut]], order[piece[cut:]], piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for *_, left, right in sorted(found)]


def _template(backend: Any, cls: str, sep: str) -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, backend.token_to_id(cls)), (sep, backend.token_to_id(sep))],
    )


def _unusable(path: Path, what: str) -> DataError:
    return DataError(what, where=str(path), allowed="a SentencePiece unigram or BPE model, or a tokenizer's folder")

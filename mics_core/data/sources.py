"""From a job specification to the collection of samples that it names."""

from __future__ import annotations

from mics_core.data.documents import data_files, read_documents
from mics_core.data.samples import Samples
from mics_core.data.stream import StreamSamples, TokenStream, map_token_file, pack_documents
from mics_core.data.tokenizer import Tokenizer, build_tokenizer
from mics_core.data.user import build_user_samples
from mics_core.data.vocabulary import check_vocabulary, id_limit, vocabulary_size
from mics_core.spec.data_order import DataOrder
from mics_core.spec.job import CallableData, FileData, JobSpec

__all__ = ["build_samples", "order_of", "vocabulary_size"]


def build_samples(spec: JobSpec) -> Samples:
    """Return the samples that a job trains on; the same collection in every process.

    Args:
        spec: The job; its data, tokenizer, sequence length and objective count.

    Raises:
        DataError: Data that cannot be read, breaks a rule, or is too small for one sample.
    """
    tokenizer = build_tokenizer(spec.tokenizer)
    check_vocabulary(spec, tokenizer)
    sequence_length = spec.training.sequence_length
    if isinstance(spec.data, CallableData):
        return build_user_samples(spec.data, sequence_length, id_limit(spec, tokenizer))
    stream = _build_stream(spec, spec.data, tokenizer)
    return StreamSamples(stream, sequence_length, spec.objective)


def order_of(spec: JobSpec, samples: Samples) -> DataOrder:
    """Return what the order of a job's data depends on.

    A user's collection is only counted: to read a sample may take long, and two reads may differ.
    """
    training = spec.training
    return DataOrder(
        training.seed,
        training.global_batch_size,
        training.sequence_length,
        len(samples),
        samples.content if isinstance(samples, StreamSamples) else 0,
    )


def _build_stream(spec: JobSpec, data: FileData, tokenizer: Tokenizer) -> TokenStream:
    if data.kind == "tokens":
        parts = [map_token_file(path, data.token_dtype) for path in data_files(data)]
        return TokenStream(parts, id_limit(spec, tokenizer))
    return pack_documents(read_documents(data), tokenizer)

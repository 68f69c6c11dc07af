# The public names and the modules that define them. Type checkers read this file, and so does lazy_loader at run time.

from .data.embedding_texts import EmbeddingTexts as EmbeddingTexts
from .data.embedding_texts import TextPairs as TextPairs
from .data.embedding_texts import TextQueries as TextQueries
from .data.stored_vectors import store_vectors as store_vectors
from .folders.linear_map import fit_linear_map as fit_linear_map
from .folders.rotation import rotate_embeddings as rotate_embeddings
from .folders.sentence_router import write_router as write_router
from .mteb_tasks import mteb_task as mteb_task
from .search_scores import retrieval_values as retrieval_values
from .sentence_encoder import SentenceEncoder as SentenceEncoder

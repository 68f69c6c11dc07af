# The public names and the modules that define them. Type checkers read this file, and so does lazy_loader at run time.

from .pipeline.data_recipe import DataRecipe as DataRecipe
from .pipeline.data_recipe import build_corpora as build_corpora
from .pipeline.duplicates import content_key as content_key
from .pipeline.preparation_progress import PreparationProgress as PreparationProgress
from .pipeline.prepare import prepare as prepare
from .pipeline.prepare import prepare_share as prepare_share
from .pipeline.sentence_splitting import split_sentences as split_sentences
from .pipeline.text_encoding import plain_backend as plain_backend
from .pipeline.text_encoding import tokenizer_threads as tokenizer_threads
from .readers.character_account import CharacterAccount as CharacterAccount
from .readers.character_account import CharacterStage as CharacterStage
from .readers.cleaning import clean_text as clean_text
from .readers.cleaning import cut_text as cut_text
from .readers.cleaning import decode_utf8 as decode_utf8
from .readers.huggingface import DatasetSource as DatasetSource
from .readers.huggingface import load_source as load_source
from .readers.input_files import COMPRESSED_ENDINGS as COMPRESSED_ENDINGS
from .readers.input_files import decoded_lines as decoded_lines
from .readers.input_files import file_format as file_format
from .readers.input_files import input_files as input_files
from .readers.input_files import open_input as open_input
from .readers.input_files import table_files as table_files
from .readers.json_records import json_record as json_record
from .tokenizer_training import train_tokenizer as train_tokenizer

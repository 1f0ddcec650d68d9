"""Custom training, as in the last part of TensorFlow's text generation tutorial.

python examples/custom_training.py shakespeare fit          `fit` with a custom train_step
python examples/custom_training.py shakespeare loop         a training loop written by hand
python examples/custom_training.py shakespeare curriculum   the same loop with scheduled sampling
"""

import argparse
import math
import time

import torch
import torch.nn.functional as F

import charwright as cw


def my_train_step(model: cw.LanguageModel, batch: cw.Batch, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Forward, backward, update: change what you like."""
    logits, batch.state = model(batch.inputs, batch.state, generator=batch.generator)  # (T, B, V)
    loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


class ScheduledSampling:
    """Replace input characters by the model's own predictions, rarely at first and then more and more often.

    The probability of a character from the text is an inverse sigmoid of the step, k / (k + exp(step / k)) (Bengio et
    al., 2015, arXiv:1506.03099). It prepares the model for reading its own output, as it does during generation.
    """

    def __init__(self, k: float) -> None:
        self.k, self.step, self.share = k, 0, 1.0

    def __call__(self, model: cw.LanguageModel, batch: cw.Batch, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """Train on a batch in which each input character is from the text with probability `share`."""
        self.share = self.k / (self.k + math.exp(min(self.step / self.k, 700)))
        self.step += 1
        ids, state, losses = batch.inputs[0], batch.state, []
        for t, target in enumerate(batch.targets):
            logits, state = model(ids[None], state, generator=batch.generator)  # (1, B, V)
            losses.append(F.cross_entropy(logits[0], target))
            if t + 1 < len(batch.inputs):
                samples = torch.multinomial(logits[0, :, 1:].detach().softmax(1), 1, generator=batch.generator)
                from_text = torch.rand(len(ids), generator=batch.generator, device=ids.device) < self.share
                ids = torch.where(from_text, batch.inputs[t + 1], samples[:, 0] + 1)  # never id 0, [UNK]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()


def main(arguments: list[str] | None = None) -> None:
    """Read the options and the text, train, and generate a sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="a file, a folder or the name of a corpus")
    parser.add_argument("mode", choices=("fit", "loop", "curriculum"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--units", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--k", type=float, default=200, help="scheduled sampling: larger values keep the text longer")
    parser.add_argument("--out", default="runs/custom", help="folder for the runs that the loop saves every 5 epochs")
    options = parser.parse_args(arguments)

    try:
        text = cw.read_corpus([options.corpus]).text
        vocabulary = cw.Vocabulary.from_text(text)
        dataset = cw.Windows(vocabulary.encode(text), seq_length=100, batch=options.batch)
    except cw.CharwrightError as error:  # no such text, or too short a text for --batch
        parser.error(str(error))
    model = cw.LanguageModel(cw.ModelConfig(units=options.units, embedding_size=256), len(vocabulary))
    config = cw.TrainingConfig(epochs=options.epochs, optimizer="adam", learning_rate=1e-3, schedule="constant")

    if options.mode == "fit":
        for event in cw.fit(model, dataset, config, train_step=my_train_step):
            if event.name == "epoch":
                print(f"Epoch {event.epoch} loss {event.train_loss:.4f}")
    else:
        train_step = ScheduledSampling(options.k) if options.mode == "curriculum" else my_train_step
        train_by_hand(model, dataset, config, train_step, vocabulary, options.out)
    print(cw.Generator.of(model, vocabulary).generate("\n", length=200, seed=1)[0])


def train_by_hand(model, dataset, config, train_step, vocabulary, out) -> None:
    """Train without `fit`: no schedule, no clipping and no resume, but every line is yours."""
    optimizer = cw.make_optimizer(model, config)
    generator = torch.Generator().manual_seed(config.seed)
    for epoch in range(1, config.epochs + 1):
        started, losses = time.perf_counter(), []
        for number, (inputs, targets) in enumerate(dataset.batches(epoch)):
            batch = cw.Batch(torch.from_numpy(inputs), torch.from_numpy(targets), None, generator)
            losses.append(float(train_step(model, batch, optimizer)))
            if number % 50 == 0:
                print(f"Epoch {epoch} batch {number} loss {losses[-1]:.4f}")
        if epoch % 5 == 0 or epoch == config.epochs:
            cw.Run.save(f"{out}/epoch-{epoch}", model.config, model.arrays(), vocabulary, force=True)
        print(f"Epoch {epoch} loss {sum(losses) / len(losses):.4f}, {time.perf_counter() - started:.2f} s")


if __name__ == "__main__":
    main()

"""Naive references in float64: loops over Python numbers, and the whole model run again for every stop."""

import math

import torch

from iiad.data import model_inputs, output_labels


def noise(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def rows(states):
    """(B, T, D) as a list of B * T lists of D numbers."""
    return states.flatten(0, 1).tolist()


def length(row):
    return math.sqrt(math.fsum(x * x for x in row))


def mean_of_pairs(function, before, after):
    """Mean of a function of the rows of two (B, T, D)."""
    values = [function(a, b) for a, b in zip(rows(before), rows(after), strict=True)]
    return math.fsum(values) / len(values)


def inner(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def naive_cosine(before, after):
    return mean_of_pairs(lambda a, b: 1 - inner(a, b) / (length(a) * length(b)), before, after)


def naive_relative_l2(before, after):
    def change(a, b):
        return length([y - x for x, y in zip(a, b, strict=True)]) / length(a)

    return mean_of_pairs(change, before, after)


def log_probabilities(row):
    largest = max(row)
    norm = largest + math.log(math.fsum(math.exp(x - largest) for x in row))
    return [x - norm for x in row]


def naive_kl(full, stopped):
    """Mean over all tokens, from logits (B, T, V)."""

    def kl(p_row, q_row):
        p, q = log_probabilities(p_row), log_probabilities(q_row)
        return math.fsum(math.exp(x) * (x - y) for x, y in zip(p, q, strict=True))

    return mean_of_pairs(kl, full, stopped)


def naive_nll(logits, input_ids):
    """Mean over the predicted tokens: all but the first of each row."""
    return naive_nll_of(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())


def naive_nll_of(logits, targets):
    """Mean over tokens, from logits (N, V) and targets (N,)."""
    pairs = zip(logits.tolist(), targets.tolist(), strict=True)
    values = [-log_probabilities(row)[token] for row, token in pairs]
    return math.fsum(values) / len(values)


def as_batch(tokens):
    """Text (B, T) as a batch, or a batch as it is."""
    return {"input_ids": tokens, "labels": tokens} if isinstance(tokens, torch.Tensor) else tokens


class TruncatedRuns:
    """A model run whole under other plans, with every layer's output and state written down."""

    def __init__(self, model, tokens):
        """tokens: (B, T), or a batch."""
        self.model, self.inputs = model, model_inputs(as_batch(tokens))
        self.plan = list(model.config.iterations)

    def run(self, plan, predictor_stages=None):
        """Logits (B, T, V), outputs x_{t+1} and states H_t of every layer, each (B, T, D).

        predictor_stages: for each layer how many stages its predictor runs.
        """
        outputs, states = [], []
        self.model.set_num_iterations(plan)

        def shorten(layer, arguments, options):
            return arguments, options | {"num_stages": predictor_stages[layer.place]}

        def write_down(_layer, _inputs, output):
            outputs.append(output[0])
            states.append(output[1])

        layers = self.model.base_model.layers
        hooks = [layer.register_forward_hook(write_down) for layer in layers]
        if predictor_stages is not None:
            hooks += [layer.register_forward_pre_hook(shorten, with_kwargs=True) for layer in layers]
        try:
            logits = self.model(**self.inputs).logits
        finally:
            for hook in hooks:
                hook.remove()
            self.model.set_num_iterations(self.plan)
        return logits, outputs, states

    def stops(self):
        """For each layer the runs that stop it after 0, 1, ..., r_t iterations."""
        for t, r in enumerate(self.plan):
            yield [self.run([*self.plan[:t], i, *self.plan[t + 1 :]]) for i in range(r + 1)]

    def stages(self):
        """For each layer the runs with its predictor truncated after 1, 2, ... stages."""
        order = self.model.config.num_start_evaluations
        for t in range(len(self.plan)):
            yield [
                self.run(self.plan, [j if k == t else order for k in range(len(self.plan))])
                for j in range(1, order + 1)
            ]


def naive_gradients(model, tokens):
    """The total derivative of the mean loss by each layer's state H_t, (B, T, D) each: plain autograd."""
    states = []

    def keep(_layer, _inputs, output):
        output[1].retain_grad()
        states.append(output[1])

    batch = as_batch(tokens)
    hooks = [layer.register_forward_hook(keep) for layer in model.base_model.layers]
    logits = model(**model_inputs(batch)).logits
    for hook in hooks:
        hook.remove()
    targets = output_labels(batch)
    log_q = logits[targets >= 0].log_softmax(-1)
    (-log_q.gather(-1, targets[targets >= 0][:, None]).mean()).backward()
    gradients = [state.grad for state in states]
    model.zero_grad()
    return gradients


def naive_scores(chains, gradients, tokens):
    """Every metric for chains of runs, as TruncatedRuns makes them.

    Of pairs: `kl` and `loss` at the outputs that are asked for, a layer's own metrics at its half's.
    """
    scores = {metric: [] for metric in ("kl", "loss", "taylor", "cosine", "relative_l2")}
    batch = as_batch(tokens)
    targets = output_labels(batch)
    asked = targets >= 0 if "decoder_input_ids" in batch else torch.ones_like(targets, dtype=torch.bool)
    for t, runs in enumerate(chains):
        asked_logits = [run[0][asked][None] for run in runs]
        kl = [naive_kl(asked_logits[-1], logits) for logits in asked_logits]
        nll = [naive_nll_of(run[0][targets >= 0], targets[targets >= 0]) for run in runs]
        outputs, states = [run[1][t] for run in runs], [run[2][t] for run in runs]
        in_decoder = outputs[0].shape[1] == asked.shape[1]  # the lengths of tests differ
        mask = asked if in_decoder else batch["attention_mask"].bool()
        outputs = [output[mask][None] for output in outputs]
        steps = range(1, len(runs))
        scores["kl"].append([kl[i - 1] - kl[i] for i in steps])
        scores["loss"].append([nll[i - 1] - nll[i] for i in steps])
        scores["cosine"].append([naive_cosine(outputs[i - 1], outputs[i]) for i in steps])
        scores["relative_l2"].append([naive_relative_l2(outputs[i - 1], outputs[i]) for i in steps])
        by_state = rows(gradients[t])
        changes = [rows(states[i - 1] - states[i]) for i in steps]
        scores["taylor"].append([math.fsum(map(inner, by_state, change)) for change in changes])
    return scores

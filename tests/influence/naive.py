"""Naive references in float64: loops over Python numbers, and the whole model run again for every stop."""

import math

import torch


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
    values = []
    for block, ids in zip(logits.tolist(), input_ids.tolist(), strict=True):
        values += [-log_probabilities(row)[token] for row, token in zip(block[:-1], ids[1:], strict=True)]
    return math.fsum(values) / len(values)


class TruncatedRuns:
    """A model run whole under other plans, with every layer's output and state written down."""

    def __init__(self, model, input_ids):
        self.model, self.input_ids = model, input_ids
        self.plan = list(model.config.num_iterations)

    def run(self, plan, predictor_stages=None):
        """Logits (B, T, V), outputs x_{t+1} and states H_t of every layer, each (B, T, D).

        predictor_stages: for each layer how many stages its predictor runs.
        """
        outputs, states = [], []
        self.model.set_num_iterations(plan)
        forward = self.model.model.run_layer
        if predictor_stages is not None:

            def run_layer(layer, *arguments, **context):
                return forward(layer, *arguments, num_stages=predictor_stages[layer], **context)

            self.model.model.run_layer = run_layer

        def write_down(_layer, _inputs, output):
            outputs.append(output[0])
            states.append(output[1])

        hooks = [layer.register_forward_hook(write_down) for layer in self.model.model.layers]
        try:
            logits = self.model(self.input_ids).logits
        finally:
            for hook in hooks:
                hook.remove()
            self.model.set_num_iterations(self.plan)
            if predictor_stages is not None:
                del self.model.model.run_layer
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


def naive_gradients(model, input_ids):
    """The total derivative of the mean loss by each layer's state H_t, (B, T, D) each: plain autograd."""
    hidden, context = model.model.prepare(input_ids)
    history, states = (hidden,), []
    for layer in model.model.layers:
        hidden, state = layer(hidden, model.model.predictor, *history, **context)
        state.retain_grad()
        states.append(state)
        history = (*history, state)
    logits = model.lm_head(model.model.norm(hidden))
    log_q = logits[:, :-1].log_softmax(-1)
    (-log_q.gather(-1, input_ids[:, 1:, None]).mean()).backward()
    gradients = [state.grad for state in states]
    model.zero_grad()
    return gradients


def naive_scores(chains, gradients, input_ids):
    """Every metric for chains of runs, as TruncatedRuns makes them."""
    scores = {metric: [] for metric in ("kl", "loss", "taylor", "cosine", "relative_l2")}
    for t, runs in enumerate(chains):
        full = runs[-1][0]
        kl = [naive_kl(full, logits) for logits, _, _ in runs]
        nll = [naive_nll(logits, input_ids) for logits, _, _ in runs]
        outputs, states = [run[1][t] for run in runs], [run[2][t] for run in runs]
        steps = range(1, len(runs))
        scores["kl"].append([kl[i - 1] - kl[i] for i in steps])
        scores["loss"].append([nll[i - 1] - nll[i] for i in steps])
        scores["cosine"].append([naive_cosine(outputs[i - 1], outputs[i]) for i in steps])
        scores["relative_l2"].append([naive_relative_l2(outputs[i - 1], outputs[i]) for i in steps])
        by_state = rows(gradients[t])
        changes = [rows(states[i - 1] - states[i]) for i in steps]
        scores["taylor"].append([math.fsum(map(inner, by_state, change)) for change in changes])
    return scores

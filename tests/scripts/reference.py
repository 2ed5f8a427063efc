"""Runs a transformers model as the reference: logits, log-probabilities and greedy tokens of fixed prompts.

Knows no file layout of a model: it is handed a function that loads a fresh one.
"""

import torch

torch.set_num_threads(1)
torch.set_grad_enabled(False)


def prompt_logits(model, ids):
    """Logits of every position of `ids`: f32 [len(ids), vocab]."""
    return model(torch.tensor([ids]), use_cache=False).logits[0].float()


def prompt_logprobs(logits, ids):
    """f32 [len(ids) - 1]: entry i is log p(ids[i + 1] | ids[..=i])."""
    following = torch.tensor(ids[1:])
    return torch.log_softmax(logits[:-1], dim=-1).gather(1, following[:, None])[:, 0]


def greedy(model, ids, steps, stop_ids=()):
    """The greedy continuation, through the KV cache as `generate` does it.

    Returns (tokens, margins): a margin is the logit of the chosen token less that of the runner-up.
    A token of `stop_ids` is kept and ends the continuation.
    """
    tokens, margins, cache, new = [], [], None, ids
    for _ in range(steps):
        out = model(torch.tensor([new]), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        first, second = out.logits[0, -1].float().topk(2).values.tolist()
        token = int(out.logits[0, -1].argmax())
        tokens.append(token)
        margins.append(first - second)
        if token in stop_ids:
            break
        new = [token]
    return tokens, margins


def greedy_uncached(model, ids, steps):
    """The greedy continuation with the whole sequence computed anew for each token."""
    tokens = []
    for _ in range(steps):
        tokens.append(int(prompt_logits(model, ids + tokens)[-1].argmax()))
    return tokens


def top(logits, count):
    """[[token, logit], ...] of the `count` largest entries of a logits row, largest first."""
    values, ids = logits.topk(count)
    return [[int(i), float(v)] for i, v in zip(ids, values)]

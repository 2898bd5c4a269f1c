"""What the queries say: phrases about a picture, learned at the query tokens through the backbone's output layer.

It is an addition to the paper's objectives: a small backbone was never trained to predict words at the queries. With
this loss it learns to have the words about a picture there, before or while the image features are learned.
"""

import torch


def phrase_loss(query_logits: torch.Tensor, phrase_ids: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of what the backbone would say at a query, and an equal share for each word of its phrase.

    With P phrases, each P-th part of the queries learns all words of one phrase.

    Args:
        query_logits: [B, num_queries, vocab_size], of a model called with `output_query_logits=True`.
        phrase_ids: [B, P, W], P phrases of at most W tokens, padded with -100; none is empty.

    Returns:
        [], float32, the mean over batch and queries.

    Raises:
        ValueError: when P does not divide the number of queries.
    """
    num_queries, num_phrases = query_logits.shape[1], phrase_ids.shape[1]
    if num_queries % num_phrases:
        raise ValueError(
            f"`phrase_ids` must divide the queries evenly. Got {num_phrases} phrases for {num_queries} queries. "
            f"Choose a number of queries that {num_phrases} divides."
        )
    words = phrase_ids.repeat_interleave(num_queries // num_phrases, dim=1)
    log_shares = query_logits.float().log_softmax(dim=-1)
    said = log_shares.gather(-1, words.clamp(min=0)).masked_fill(words < 0, 0.0)
    return -(said.sum(-1) / (words >= 0).sum(-1)).mean()

"""Slow reference implementation of the metrics of arXiv 2405.05171, weight by weight, on recorded runs.

A run is a list of lists: latent weights after each optimizer step, the initial ones first.
"""

from __future__ import annotations


def sequence(levels):
    """Change-point sequence of one weight from its level after each step: [(level, step), …]."""
    entries = [(levels[0], 0)]
    for step, level in enumerate(levels[1:], 1):
        if level != entries[-1][0]:
            entries.append((level, step))
    return entries


def compress(entries):
    """Compressed change-point sequence: [(level, time, oscillation count), …]."""
    stack = []
    for level, time in entries:
        stack.append([level, time, 0])
        while len(stack) >= 4 and stack[-4][0] == stack[-2][0] and stack[-3][0] == stack[-1][0]:
            first_x, _, _, last_y = stack[-4:]
            first_x[2] += 1
            stack[-4:] = [first_x, last_y]
    return [tuple(entry) for entry in stack]


def transpose(run):
    return [list(column) for column in zip(*run, strict=True)]


def share(flags):
    flags = list(flags)
    return sum(flags) / len(flags) if flags else None


def divide(numerator, denominator):
    return numerator / denominator if denominator else None


def metrics(levels_ref, levels, weights_ref_mapped, weights, max_):
    """All metrics that are ratios, for two recorded runs; levels and weights as [step][weight], max by weight."""
    ref = [sequence(column) for column in transpose(levels_ref)]
    counterpart = [sequence(column) for column in transpose(levels)]
    ref_c, counterpart_c = [compress(entries) for entries in ref], [compress(entries) for entries in counterpart]
    pairs, pairs_c = list(zip(ref, counterpart, strict=True)), list(zip(ref_c, counterpart_c, strict=True))
    moved = [len(a) > 1 or len(b) > 1 for a, b in pairs]

    def same(pair):
        return [entry[0] for entry in pair[0]] == [entry[0] for entry in pair[1]]

    equal, equal_c = [p for p in pairs if same(p)], [p for p in pairs_c if same(p)]
    changes = sum(len(a) - 1 for a, _ in equal)
    changes_c = sum(len(a) - 1 for a, _ in equal_c)
    equal_levels = [a == b for a, b in zip(levels_ref[-1], levels[-1], strict=True)]
    path = sum(
        abs(after - before) / m
        for earlier, later in zip(weights, weights[1:], strict=False)
        for before, after, m in zip(earlier, later, max_, strict=True)
    )
    distance = sum(abs(a - b) / m for a, b, m in zip(weights_ref_mapped, weights[-1], max_, strict=True))
    return {
        "change_point_sequence_agreement": share(map(same, pairs)),
        "change_point_sequence_agreement_moved": share(same(p) for p, m in zip(pairs, moved, strict=True) if m),
        "compressed_change_point_sequence_agreement": share(map(same, pairs_c)),
        "compressed_change_point_sequence_agreement_moved": share(
            same(p) for p, m in zip(pairs_c, moved, strict=True) if m
        ),
        "average_change_point_error": divide(
            sum(abs(x[1] - y[1]) for a, b in equal for x, y in zip(a, b, strict=True)), changes
        ),
        "average_compressed_change_point_error": divide(
            sum(abs(x[1] - y[1]) for a, b in equal_c for x, y in zip(a, b, strict=True)), changes_c
        ),
        "average_oscillation_error": divide(
            sum(abs(x[2] - y[2]) for a, b in equal_c for x, y in zip(a, b, strict=True)), changes_c
        ),
        "quantized_weight_agreement": share(equal_levels),
        "quantized_weight_agreement_moved": share(n for n, m in zip(equal_levels, moved, strict=True) if m),
        "weight_alignment_error": divide(distance, path),
    }

import itertools

import torch

from rhythm.seeding import PURPOSES, derive_seed, generator, seed_adapter


def test_every_purpose_and_counter_has_a_seed_of_its_own():
    arguments = [
        (seed, purpose, iteration, rank)
        for seed, purpose, iteration, rank in itertools.product(range(3), PURPOSES, range(5), range(2))
    ]
    seeds = {derive_seed(*each) for each in arguments}
    assert len(seeds) == len(arguments)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_are_the_same_on_every_machine_and_day():
    assert derive_seed(0, "sampling", 1, 0) == derive_seed(0, "sampling", 1, 0) == 1554199118406742183


def test_generators_of_one_seed_draw_the_same():
    def draw(*arguments):
        return torch.rand(4, generator=generator(*arguments))

    assert torch.equal(draw(0, "sampling", 7, 0), draw(0, "sampling", 7, 0))
    assert not torch.equal(draw(0, "sampling", 7, 0), draw(0, "sampling", 7, 1))
    assert not torch.equal(draw(0, "sampling", 7, 0), draw(0, "minibatches", 7, 0))


def test_adapters_are_drawn_from_their_seed_whatever_was_drawn_before():
    draws = []
    for seed in (0, 0, 1):
        seed_adapter(seed)
        draws.append(torch.rand(4))
        torch.rand(3)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])

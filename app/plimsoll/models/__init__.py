"""Finding, fetching, opening and sharing models; one slot a model, a pool over all slots."""

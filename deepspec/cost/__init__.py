"""What artifacts, drafts, runs and months have cost, in all runs that paid for them; killed attempts count, too.

    tasks.runtime.paid ──► accounts ──► attempts   one try at one artifact: who paid, and what it used
    flows.cli.cost ──┬──► making ──► accounts      a draft, with all it was made from and measured by
                     └──► months                   the runs of a month, from the history
    both ──► prices                                money, by a recipe's prices or those given now

An attempt counts once: while it lasts, and if it did not finish, its account in the store says what it used; then the
manifest of the artifact that was made in the end does, and the account goes. Both name its run and its number, by which
one that stands in both is recognised. A run's record says what the run used, and never what it took over.
"""

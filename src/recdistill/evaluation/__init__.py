"""Full-ranking evaluation, its strata and its doubt."""

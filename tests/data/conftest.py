from hypothesis import settings

# The same examples in every run, and no time limit for one of them: the machine may be busy.
settings.register_profile("recdistill", deadline=None, derandomize=True)
settings.load_profile("recdistill")

"""What all tests share: no time limits on single examples, which a busy machine would miss."""

from hypothesis import HealthCheck, settings

settings.register_profile("daclip", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("daclip")

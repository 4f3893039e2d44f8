"""What a plan expects of tables that are not refreshed yet."""

import pytest

from vpo_assets.forecasts import Forecast


@pytest.mark.parametrize(
    ("forecast", "share"),
    [
        (Forecast(10, 0.0), 0.0),
        (Forecast(10, 5.0), 0.5),
        (Forecast(0, 5.0), 1.0),
        (Forecast(0, 0.0), 0.0),  # nothing is there and nothing comes: what is made of it stays
        (Forecast(0, None), 0.0),
    ],
)
def test_what_comes_is_a_share_of_what_is_there(forecast: Forecast, share: float) -> None:
    assert forecast.share_coming == share

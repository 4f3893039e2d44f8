"""The offline reward that measures pixels."""

import pytest

from resources.backend_settings import PixelRewardSettings
from resources.video_reward import VideoReward, build_video_reward
from tests.resources.video_reward_contract import VideoRewardContract


class TestPixels(VideoRewardContract):
    @pytest.fixture
    def reward(self) -> VideoReward:
        return build_video_reward(PixelRewardSettings())

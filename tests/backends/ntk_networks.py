"""Networks and layers that the tests of empirical_ntk share."""

from naive_ntk import randomise
from torch import nn


class Mean(nn.Module):
    """(N, channels, …) to (N, channels)."""

    def forward(self, x):
        return x.flatten(2).mean(2)


def head(*layers, channels, outputs=3):
    return nn.Sequential(*layers, nn.Tanh(), Mean(), nn.Linear(channels, outputs)).eval()


class Block(nn.Module):
    """Residual block of a narrow ResNet (norm) or Wide ResNet (no norm, convolved shortcut)."""

    def __init__(self, cin, cout, stride, norm):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=not norm)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=not norm)
        self.norm1 = nn.BatchNorm2d(cout) if norm else nn.Identity()
        self.norm2 = nn.BatchNorm2d(cout) if norm else nn.Identity()
        self.relu = nn.ReLU(inplace=norm)
        size = 1 if norm else 3
        change = stride != 1 or cin != cout
        self.shortcut = nn.Conv2d(cin, cout, size, stride, size // 2) if change else nn.Identity()
        self.after = norm

    def forward(self, x):
        start = x if self.after else self.relu(x)
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(start)))))
        y = y + self.shortcut(x)
        return self.relu(y) if self.after else y


def narrow_resnet(norm, width=4):
    blocks = [Block(width << max(i - 1, 0), width << i, 1 + (i > 0), norm) for i in range(3)]
    stem = nn.Conv2d(3, width, 3, 1, 1)
    return randomise(head(stem, *blocks, channels=4 * width)).eval()

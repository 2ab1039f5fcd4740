"""The problems of Moré, Garbow & Hillstrom (1981, ACM TOMS 7, 17-41) as sums of squares.

`PROBLEMS` lists (name, residuals, start). The residuals also take complex numbers, by which
`jacobian` differentiates them to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Vector = np.ndarray
Residuals = Callable[[Vector], Vector]


def _numbers(s: str) -> Vector:
    return np.array([float(v) for v in s.split()])


BARD = _numbers(".14 .18 .22 .25 .29 .32 .35 .39 .37 .58 .73 .96 1.34 2.10 4.39")
GAUSS = _numbers(
    ".0009 .0044 .0175 .0540 .1295 .2420 .3521 .3989 .3521 .2420 .1295 .0540 .0175 .0044 .0009"
)
MEYER = _numbers(
    "34780 28610 23650 19630 16370 13720 11540 9744 8261 7030 6005 5147 4427 3820 3307 2872"
)
KOWY = _numbers(".1957 .1947 .1735 .1600 .0844 .0627 .0456 .0342 .0323 .0235 .0246")
KOWU = _numbers("4 2 1 .5 .25 .167 .125 .1 .0833 .0714 .0625")
OSB1 = _numbers(
    ".844 .908 .932 .936 .925 .908 .881 .850 .818 .784 .751 .718 .685 .658 .628 .603 .580 "
    ".558 .538 .522 .506 .490 .478 .467 .457 .448 .438 .431 .424 .420 .414 .411 .406"
)
OSB2 = _numbers(
    "1.366 1.191 1.112 1.013 .991 .885 .831 .847 .786 .725 .746 .679 .608 .655 .616 .606 .602 "
    ".626 .651 .724 .649 .649 .694 .644 .624 .661 .612 .558 .533 .495 .500 .423 .395 .375 "
    ".372 .391 .396 .405 .428 .429 .523 .562 .607 .653 .672 .708 .633 .668 .645 .632 .591 "
    ".559 .597 .625 .739 .710 .729 .720 .636 .581 .428 .292 .162 .098 .054"
)


def _join(*parts: object) -> Vector:
    return np.concatenate([np.atleast_1d(part) for part in parts])


def rosen(x: Vector) -> Vector:
    return _join(10 * (x[1] - x[0] ** 2), 1 - x[0])


def freud(x: Vector) -> Vector:
    return _join(
        -13 + x[0] + ((5 - x[1]) * x[1] - 2) * x[1], -29 + x[0] + ((x[1] + 1) * x[1] - 14) * x[1]
    )


def pbad(x: Vector) -> Vector:
    return _join(1e4 * x[0] * x[1] - 1, np.exp(-x[0]) + np.exp(-x[1]) - 1.0001)


def bbad(x: Vector) -> Vector:
    return _join(x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2)


def beale(x: Vector) -> Vector:
    return np.stack([y - x[0] * (1 - x[1] ** i) for i, y in ((1, 1.5), (2, 2.25), (3, 2.625))])


def jensam(x: Vector) -> Vector:
    i = np.arange(1, 11)
    return 2 + 2 * i - (np.exp(i * x[0]) + np.exp(i * x[1]))


def helical(x: Vector) -> Vector:
    th = np.arctan(x[1] / x[0]) / (2 * np.pi) + (0.5 if x[0].real < 0 else 0.0)
    return _join(10 * (x[2] - 10 * th), 10 * (np.sqrt(x[0] ** 2 + x[1] ** 2) - 1), x[2])


def bard(x: Vector) -> Vector:
    u = np.arange(1, 16)
    v = 16 - u
    w = np.minimum(u, v)
    return BARD - (x[0] + u / (v * x[1] + w * x[2]))


def gaussian(x: Vector) -> Vector:
    t = (8 - np.arange(1, 16)) / 2
    return x[0] * np.exp(-x[1] * (t - x[2]) ** 2 / 2) - GAUSS


def meyer(x: Vector) -> Vector:
    t = 45 + 5 * np.arange(1, 17)
    return x[0] * np.exp(x[1] / (t + x[2])) - MEYER


def gulf(x: Vector) -> Vector:
    t = np.arange(1, 100) / 100
    y = 25 + (-50 * np.log(t)) ** (2 / 3)
    d = y - x[1]
    d = d * np.sign(d.real)
    return np.exp(-(d ** x[2]) / x[0]) - t


def box3(x: Vector) -> Vector:
    t = 0.1 * np.arange(1, 11)
    return np.exp(-t * x[0]) - np.exp(-t * x[1]) - x[2] * (np.exp(-t) - np.exp(-10 * t))


def psing(x: Vector) -> Vector:
    return _join(
        x[0] + 10 * x[1],
        5**0.5 * (x[2] - x[3]),
        (x[1] - 2 * x[2]) ** 2,
        10**0.5 * (x[0] - x[3]) ** 2,
    )


def wood(x: Vector) -> Vector:
    return _join(
        10 * (x[1] - x[0] ** 2),
        1 - x[0],
        90**0.5 * (x[3] - x[2] ** 2),
        1 - x[2],
        10**0.5 * (x[1] + x[3] - 2),
        10**-0.5 * (x[1] - x[3]),
    )


def kowalik(x: Vector) -> Vector:
    return KOWY - x[0] * (KOWU**2 + KOWU * x[1]) / (KOWU**2 + KOWU * x[2] + x[3])


def brownden(x: Vector) -> Vector:
    t = np.arange(1, 21) / 5
    return (x[0] + t * x[1] - np.exp(t)) ** 2 + (x[2] + x[3] * np.sin(t) - np.cos(t)) ** 2


def osb1(x: Vector) -> Vector:
    t = 10 * np.arange(33)
    return OSB1 - (x[0] + x[1] * np.exp(-t * x[3]) + x[2] * np.exp(-t * x[4]))


def biggs(x: Vector) -> Vector:
    t = 0.1 * np.arange(1, 14)
    y = np.exp(-t) - 5 * np.exp(-10 * t) + 3 * np.exp(-4 * t)
    return x[2] * np.exp(-t * x[0]) - x[3] * np.exp(-t * x[1]) + x[5] * np.exp(-t * x[4]) - y


def osb2(x: Vector) -> Vector:
    t = np.arange(65) / 10
    return OSB2 - (
        x[0] * np.exp(-t * x[4])
        + x[1] * np.exp(-((t - x[8]) ** 2) * x[5])
        + x[2] * np.exp(-((t - x[9]) ** 2) * x[6])
        + x[3] * np.exp(-((t - x[10]) ** 2) * x[7])
    )


def watson(x: Vector) -> Vector:
    n = len(x)
    t = np.arange(1, 30) / 29
    j = np.arange(n)
    P = t[:, None] ** j
    D = np.zeros((29, n))
    D[:, 1:] = j[1:] * t[:, None] ** (j[1:] - 1)
    return _join(D @ x - (P @ x) ** 2 - 1, x[0], x[1] - x[0] ** 2 - 1)


def extros(x: Vector) -> Vector:
    return _join(10 * (x[1::2] - x[::2] ** 2), 1 - x[::2])


def extpow(x: Vector) -> Vector:
    return _join(*[psing(x[4 * k : 4 * k + 4]) for k in range(len(x) // 4)])


def pen1(x: Vector) -> Vector:
    return _join(1e-5**0.5 * (x - 1), np.sum(x**2) - 0.25)


def pen2(x: Vector) -> Vector:
    n = len(x)
    a = 1e-5**0.5
    i = np.arange(2, n + 1)
    y = np.exp(i / 10) + np.exp((i - 1) / 10)
    return _join(
        x[0] - 0.2,
        a * (np.exp(x[1:] / 10) + np.exp(x[:-1] / 10) - y),
        a * (np.exp(x[1:] / 10) - np.exp(-0.1)),
        np.sum((n - np.arange(n)) * x**2) - 1,
    )


def vardim(x: Vector) -> Vector:
    n = len(x)
    s = np.sum(np.arange(1, n + 1) * (x - 1))
    return _join(x - 1, s, s**2)


def trig(x: Vector) -> Vector:
    n = len(x)
    i = np.arange(1, n + 1)
    return n - np.sum(np.cos(x)) + i * (1 - np.cos(x)) - np.sin(x)


def brownal(x: Vector) -> Vector:
    n = len(x)
    return _join(x[:-1] + np.sum(x) - (n + 1), np.prod(x) - 1)


def bvp(x: Vector) -> Vector:
    n = len(x)
    h = 1 / (n + 1)
    t = h * np.arange(1, n + 1)
    e = _join(0, x, 0)
    return 2 * x - e[:-2] - e[2:] + h**2 * (x + t + 1) ** 3 / 2


def integ(x: Vector) -> Vector:
    n = len(x)
    h = 1 / (n + 1)
    t = h * np.arange(1, n + 1)
    w = (x + t + 1) ** 3
    return (
        x
        + h * ((1 - t) * np.cumsum(t * w) + t * (np.sum((1 - t) * w) - np.cumsum((1 - t) * w))) / 2
    )


def broytri(x: Vector) -> Vector:
    e = _join(0, x, 0)
    return (3 - 2 * x) * x - e[:-2] - 2 * e[2:] + 1


def broyband(x: Vector) -> Vector:
    n = len(x)
    out = []
    for i in range(n):
        J = [j for j in range(max(0, i - 5), min(n, i + 2)) if j != i]
        out.append(x[i] * (2 + 5 * x[i] ** 2) + 1 - sum(x[j] * (1 + x[j]) for j in J))
    return np.stack(out)


def linfull(x: Vector, m: int = 20) -> Vector:
    n = len(x)
    s = 2 * np.sum(x) / m + 1
    return _join(x - s, np.full(m - n, 1.0) * -s)


def lin1(x: Vector, m: int = 20) -> Vector:
    i = np.arange(1, m + 1)
    return i * np.sum(np.arange(1, len(x) + 1) * x) - 1


def lin1z(x: Vector, m: int = 20) -> Vector:
    n = len(x)
    j = np.arange(1, n + 1)
    s = np.sum((j * x)[1:-1])
    return _join(-1, np.arange(1, m - 1) * s - 1, -1)


def cheby(x: Vector) -> Vector:
    n = len(x)
    T0, T1 = np.ones(n), 2 * x - 1
    rows = []
    for k in range(1, n + 1):
        rows.append(T1.mean() - (0.0 if k % 2 else -1.0 / (k * k - 1.0)))
        T0, T1 = T1, 2 * (2 * x - 1) * T1 - T0
    return np.stack(rows)


def _each(n: int, f: Callable[[int], float]) -> Vector:
    return np.array([f(i) for i in range(1, n + 1)], float)


_LIST = [
    ("rosenbrock", rosen, [-1.2, 1]),
    ("freudenstein-roth", freud, [0.5, -2]),
    ("powell bad", pbad, [0, 1]),
    ("brown bad", bbad, [1, 1]),
    ("beale", beale, [1, 1]),
    ("jennrich-sampson", jensam, [0.3, 0.4]),
    ("helical", helical, [-1, 0, 0]),
    ("bard", bard, [1, 1, 1]),
    ("gaussian", gaussian, [0.4, 1, 0]),
    ("meyer", meyer, [0.02, 4000, 250]),
    ("gulf", gulf, [5, 2.5, 0.15]),
    ("box3d", box3, [0, 10, 20]),
    ("powell singular", psing, [3, -1, 0, 1]),
    ("wood", wood, [-3, -1, -3, -1]),
    ("kowalik", kowalik, [0.25, 0.39, 0.415, 0.39]),
    ("brown-dennis", brownden, [25, 5, -5, -1]),
    ("osborne 1", osb1, [0.5, 1.5, -1, 0.01, 0.02]),
    ("biggs 6", biggs, [1, 2, 1, 1, 1, 1]),
    ("osborne 2", osb2, [1.3, 0.65, 0.65, 0.7, 0.6, 3, 5, 7, 2, 4.5, 5.5]),
    ("watson 6", watson, [0] * 6),
    ("watson 9", watson, [0] * 9),
    ("watson 12", watson, [0] * 12),
    ("ext rosenbrock 10", extros, [-1.2, 1] * 5),
    ("ext powell 12", extpow, [3, -1, 0, 1] * 3),
    ("penalty1 4", pen1, [1, 2, 3, 4]),
    ("penalty1 10", pen1, range(1, 11)),
    ("penalty2 4", pen2, [0.5] * 4),
    ("penalty2 10", pen2, [0.5] * 10),
    ("vardim 10", vardim, _each(10, lambda i: 1 - i / 10)),
    ("trig 10", trig, [0.1] * 10),
    ("brown almost 10", brownal, [0.5] * 10),
    ("bvp 10", bvp, _each(10, lambda i: i / 11 * (i / 11 - 1))),
    ("integral 10", integ, _each(10, lambda i: i / 11 * (i / 11 - 1))),
    ("broyden tri 10", broytri, [-1] * 10),
    ("broyden band 10", broyband, [-1] * 10),
    ("linear full 5", linfull, [1] * 5),
    ("linear 1 5", lin1, [1] * 5),
    ("linear 1z 5", lin1z, [1] * 5),
    ("cheby 5", cheby, _each(5, lambda i: i / 6)),
    ("cheby 8", cheby, _each(8, lambda i: i / 9)),
    ("cheby 10", cheby, _each(10, lambda i: i / 11)),
]


def jacobian(residuals: Residuals) -> Residuals:
    """The Jacobian (m, n), by complex steps."""

    def found(x: Vector) -> Vector:
        columns = []
        for j in range(len(x)):
            z = np.array(x, complex)
            z[j] += 1e-30j
            columns.append(residuals(z).imag / 1e-30)
        return np.stack(columns, axis=1)

    return found


PROBLEMS: list[tuple[str, Residuals, Vector]] = [
    (name, residuals, np.array(list(start), float)) for name, residuals, start in _LIST
]

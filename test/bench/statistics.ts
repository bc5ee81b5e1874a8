/** Minimum, median and maximum of repeated measurements. */
export interface Spread {
  readonly minimum: number;
  readonly median: number;
  readonly maximum: number;
}

/** The spread of some numbers; `undefined` for none. */
export function spread(values: readonly number[]): Spread | undefined {
  const sorted = [...values].sort((a, b) => a - b);
  const minimum = sorted[0];
  const maximum = sorted.at(-1);
  if (minimum === undefined || maximum === undefined) {
    return undefined;
  }
  const upper = sorted[sorted.length >> 1] ?? maximum;
  const lower = sorted[(sorted.length - 1) >> 1] ?? minimum;
  return { minimum, median: (lower + upper) / 2, maximum };
}

/**
 * The spread of the quotients of two series, round by round: neighbours in time are compared, so what slows a whole round
 * down cancels out. Rounds that either of them lacks are left out.
 */
export function ratios(
  dividends: readonly (number | undefined)[],
  divisors: readonly (number | undefined)[],
): Spread | undefined {
  const quotients: number[] = [];
  dividends.forEach((dividend, round) => {
    const divisor = divisors[round];
    if (dividend !== undefined && divisor !== undefined && divisor > 0) {
      quotients.push(dividend / divisor);
    }
  });
  return spread(quotients);
}

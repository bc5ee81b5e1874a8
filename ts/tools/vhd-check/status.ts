import type { Result } from "./schema.ts";

/** Exit statuses, as fsck has them; several at once are added up. */
export const status = { clean: 0, mended: 1, left: 4, failed: 8, usage: 16 } as const;

/** The exit status for what came of several images. */
export function statusFor(results: readonly Pick<Result, "outcome" | "mended">[]): number {
  return results.reduce<number>((sum, { outcome, mended }) => {
    const own = outcome === "left" ? status.left : outcome === "failed" ? status.failed : status.clean;
    return sum | own | (mended ? status.mended : status.clean);
  }, status.clean);
}

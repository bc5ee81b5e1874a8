/** Where the data of a disk are, extent by extent. */

import * as z from "zod";
import type { Jobs } from "../cli/jobs.ts";

/** Sectors that are together in one place. */
export interface Extent {
  readonly sector: number;
  readonly sectors: number;
  /** Image of the chain that has them, 0 for the leaf; null for zeros that nobody has. */
  readonly level: number | null;
}

const mapSchema = z.object({
  extents: z.array(
    z.object({
      sector: z.int().nonnegative(),
      sectors: z.int().positive(),
      level: z.int().nonnegative().nullable(),
      offset: z.int().nonnegative().nullable(),
    }),
  ),
  end: z.int().nonnegative(),
});

/**
 * The extents of a disk of so many sectors, in order. Neighbours of the same level are joined.
 * @throws JobError when the chain can't be read
 */
export async function* extentsOf(
  jobs: Jobs,
  { path, driver }: { path: string; driver: "vhd" | "aio" },
  sectors: number,
): AsyncGenerator<Extent> {
  let last: Extent | undefined;
  for (let sector = 0; sector < sectors; ) {
    const part = await jobs.run({ job: "map", path, driver, sector, sectors: sectors - sector }, mapSchema);
    for (const { level, ...place } of part.extents) {
      if (last?.level === level) {
        last = { ...last, sectors: last.sectors + place.sectors };
      } else {
        if (last !== undefined) yield last;
        last = { sector: place.sector, sectors: place.sectors, level };
      }
    }
    sector = part.end;
  }
  if (last !== undefined) yield last;
}

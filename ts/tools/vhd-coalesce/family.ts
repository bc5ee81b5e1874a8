/** A chain, and who else has its images as parents: in the folders where the images of the chain are. */

import { readdirSync, realpathSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import * as z from "zod";
import type { Jobs } from "../cli/jobs.ts";

const memberSchema = z.object({
  path: z.string(),
  realPath: z.string(),
  driver: z.enum(["vhd", "aio"]),
  size: z.int().nonnegative(),
});

const childrenSchema = z.object({
  chain: z.tuple([memberSchema], memberSchema),
  children: z.array(z.object({ path: z.string(), parent: z.int().nonnegative() })),
});

/** An image of a chain. */
export type Member = z.infer<typeof memberSchema>;

/** A chain, leaf first, and the other children of its images, each with its parent's index. */
export type Family = z.infer<typeof childrenSchema>;

/** Finds the family of an image. */
export async function familyOf(path: string, jobs: Jobs): Promise<Family> {
  const { chain } = await jobs.run({ job: "children", path, files: [] }, childrenSchema);
  const members = new Set(chain.map(({ realPath }) => realPath));
  const folders = new Set(chain.flatMap((member) => [dirname(member.path), dirname(member.realPath)]));
  // Each file once, whatever links there are to it.
  const files = new Map<string, string>();
  for (const file of [...folders].flatMap(filesIn)) {
    const real = realPathOf(file);
    if (real !== undefined && !members.has(real) && !files.has(real)) files.set(real, file);
  }
  return jobs.run({ job: "children", path, files: [...files.values()] }, childrenSchema);
}

function filesIn(folder: string): string[] {
  return readdirSync(folder).map((name) => join(folder, name));
}

/** The path without links of what may be an image. */
function realPathOf(path: string): string | undefined {
  try {
    const status = statSync(path);
    return status.isFile() || status.isBlockDevice() ? realpathSync(path) : undefined;
  } catch {
    // A link to nothing, or a file that has gone.
    return undefined;
  }
}

/** A chain, and who else has its images as parents: in the folders where the images of the chain are. */

import { readdirSync } from "node:fs";
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
  const files = new Set([...folders].flatMap(filesIn).filter((file) => !members.has(file) && file !== path));
  return jobs.run({ job: "children", path, files: [...files] }, childrenSchema);
}

function filesIn(folder: string): string[] {
  const entries = readdirSync(folder, { withFileTypes: true });
  return entries.filter((entry) => entry.isFile()).map(({ name }) => join(folder, name));
}

/** What checking and mending yield: from the engine (`crates/vhd/src/jobs/check`), and to whoever asks for JSON. */

import * as z from "zod";

// A number from a corrupt file need not be a safe integer.
const bytes = z.number().nonnegative();
const count = z.int().nonnegative();

const severitySchema = z.enum(["error", "warning", "note"]);

/** A kind of finding. */
export const codeSchema = z.object({
  code: z.string().describe("name of the kind of finding; it never changes its meaning"),
  severity: severitySchema.describe(
    "error: data are lost or at risk; warning: not yet, or with some programs; note: fine",
  ),
  meaning: z.string().describe("what it means"),
  remedy: z.string().describe("what mends it"),
});

/** A kind of finding. */
export type Code = z.infer<typeof codeSchema>;

const findingSchema = codeSchema.extend({
  structure: z.string().describe("structure of the file"),
  offset: bytes.nullable().describe("byte offset in the file"),
  block: count.nullable().describe("block of the disk"),
  message: z.string().describe("what is the matter"),
  found: z.string().nullable().describe("what is there"),
  expected: z.string().nullable().describe("what should be there"),
  original: z.string().nullable().describe("what blktap's vhd-util check says of it, if it would notice"),
});

/** Something that was found. */
export type Finding = z.infer<typeof findingSchema>;

const stepSchema = z.object({
  codes: z.array(z.string()).describe("codes of what it mends"),
  what: z.string().describe("what it does"),
  offset: bytes.describe("byte offset of the first change"),
  bytes: bytes.describe("bytes that change"),
});

const leftSchema = z.object({ code: z.string(), why: z.string().describe("why it is not mended, or what mends it") });

const statsSchema = z.object({
  allocated: count.describe("sectors in blocks of the image"),
  written: count.describe("sectors that its bitmaps say are there"),
  notInParent: count.describe("of these, the ones that its parent doesn't have"),
  notInAncestors: count.describe("of these, the ones that no image below has"),
});

const diskSchema = z.object({
  type: z.enum(["fixed", "dynamic", "differencing"]),
  size: bytes.describe("size of the virtual disk in bytes"),
  uuid: z.string(),
  creator: z.string().describe("program that made the image"),
  blockSize: count.describe("bytes in a block; 0 without blocks"),
  blocks: count,
  allocatedBlocks: count,
});

/** What was found in an image. */
export const imageReportSchema = z.object({
  path: z.string(),
  fileSize: bytes,
  inUse: z.boolean().describe("it was open for writing elsewhere, so that what was found may have changed meanwhile"),
  disk: diskSchema.nullable().describe("what the image is; null if no footer can be read"),
  parent: z.string().nullable().describe("path of the parent that was found"),
  complete: z.boolean().describe("nothing kept the check from looking at everything that it was asked to"),
  errors: count,
  warnings: count,
  notes: count,
  findings: z.array(findingSchema).describe("worst first; not more than 32 of each code"),
  unlisted: z.array(z.object({ code: z.string(), count })).describe("how many others there are"),
  plan: z.array(stepSchema).describe("what --repair would do, or did"),
  left: z.array(leftSchema).describe("what --repair would leave, or left"),
  stats: statsSchema.nullable().describe("sectors, with --stats"),
  original: z.string().nullable().describe("what blktap's vhd-util check would say; null if it finds the image valid"),
});

/** What was found in an image. */
export type ImageReport = z.infer<typeof imageReportSchema>;

/** What a check of an image and its parents yields. */
export const checkReportSchema = z.object({ images: z.array(imageReportSchema) });

/** What mending an image yields. */
export const mendedSchema = z.object({
  before: imageReportSchema,
  after: imageReportSchema.nullable(),
  undo: z.string().nullable(),
});

/** What undoing a repair yields. */
export const undoneSchema = z.object({ path: z.string(), changes: count });

const outcomes = ["clean", "mended", "left", "failed"] as const;

/** What came of one of the files that were given. */
export const resultSchema = z.object({
  path: z.string(),
  outcome: z.enum(outcomes).describe("left: something is wrong that was not mended, apart from notes"),
  mended: z.boolean().describe("something was mended, whatever was left"),
  images: z.array(imageReportSchema).describe("the image as it is now, and with --chain its parents, nearest first"),
  before: imageReportSchema.nullable().describe("the image as it was before it was mended"),
  undo: z.string().nullable().describe("file that undoes what was done (vhd-check --undo)"),
  error: z.string().nullable().describe("why it could not be looked at"),
});

/** What came of one of the files that were given. */
export type Result = z.infer<typeof resultSchema>;

/** What `vhd-check --json` prints. */
export const outputSchema = z
  .object({
    format: z.literal("vhd-check"),
    version: z.literal(1),
    status: z.int().min(0).max(255).describe("the exit status"),
    results: z.array(resultSchema),
  })
  .describe("What vhd-check --json prints");

/** The JSON Schema of that, as it is installed. */
export function outputJsonSchema(): unknown {
  return z.toJSONSchema(outputSchema);
}

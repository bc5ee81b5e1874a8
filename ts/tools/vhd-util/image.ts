/** What the `info` and `blocks` jobs tell of images. */

import * as z from "zod";
import { ToolError } from "../cli/failure.ts";
import type { Jobs } from "../cli/jobs.ts";

const problem = z.object({ structure: z.string(), message: z.string(), errno: z.int() });
const unsigned = z.int().nonnegative();
/** Numbers from a file that need not fit into a number of JavaScript's. */
const large = z.string().regex(/^\d+$/).transform(BigInt);

const footer = z.object({
  offset: large,
  cookie: z.string(),
  features: unsigned,
  version: unsigned,
  dataOffset: large,
  timestamp: unsigned,
  creatorApplication: z.string(),
  creatorVersion: unsigned,
  creatorHostOs: unsigned,
  originalSize: large,
  currentSize: large,
  geometry: unsigned,
  diskType: unsigned,
  checksum: unsigned,
  computedChecksum: unsigned,
  uuid: z.string(),
  savedState: unsigned,
  hidden: unsigned,
});

const header = z.object({
  offset: large,
  cookie: z.string(),
  dataOffset: large,
  tableOffset: large,
  version: unsigned,
  maxTableEntries: unsigned,
  blockSize: unsigned,
  parentUuid: z.string(),
  parentTimestamp: unsigned,
  parentName: z.string(),
  checksum: unsigned,
  computedChecksum: unsigned,
});

const locator = z.object({
  index: unsigned,
  platform: z.string(),
  dataSpace: unsigned,
  dataLength: unsigned,
  dataOffset: large,
  name: z.string().nullable(),
});

const batmap = z.object({
  headerOffset: large,
  offset: large,
  sectors: unsigned,
  version: unsigned,
  marker: unsigned,
  keyHash: z.tuple([z.string(), z.string()]).nullable(),
  checksum: unsigned,
  computedChecksum: unsigned.nullable(),
  map: z.string().nullable(),
  problem: problem.nullable(),
});

const imageSchema = z.object({
  path: z.string(),
  realPath: z.string(),
  fileSize: unsigned,
  blockDevice: z.boolean(),
  type: z.enum(["fixed", "dynamic", "differencing", "raw", ""]),
  size: large,
  problem: problem.nullable(),
  footerProblem: problem.nullable(),
  footer: footer.nullable(),
  header: header.nullable(),
  locators: z.array(locator),
  batmap: batmap.nullable(),
  bat: z.object({ blocks: unsigned, allocated: unsigned, end: unsigned }).nullable(),
  batProblem: problem.nullable(),
  parent: z.string().nullable(),
  parentProblem: problem.nullable(),
});

/** An image as the `info` job describes it; `crates/vhd/src/jobs/info.rs` says what each field means. */
export type ImageDescription = z.infer<typeof imageSchema>;
/** A footer as it is in the file. */
export type Footer = z.infer<typeof footer>;
/** A dynamic header as it is in the file. */
export type Header = z.infer<typeof header>;
/** A parent locator. */
export type Locator = z.infer<typeof locator>;
/** blktap's batmap. */
export type Batmap = z.infer<typeof batmap>;

/** How much is to be told; see `InfoSpec`. */
export interface InfoOptions {
  readonly driver?: "vhd" | "aio";
  readonly fast?: boolean;
  readonly start?: number;
  readonly backup?: boolean;
  readonly bat?: boolean;
  readonly batmap?: boolean;
  readonly parent?: boolean;
  readonly parents?: boolean;
}

/**
 * An image and, if they are wanted, its parents: the image first.
 * @throws JobError when its file can't be read
 */
export async function describeChain(jobs: Jobs, path: string, options: InfoOptions): Promise<ImageDescription[]> {
  return await jobs.run({ job: "info", path, driver: "vhd", ...options }, z.array(imageSchema).min(1));
}

/**
 * An image.
 * @throws JobError when its file can't be read
 */
export async function describeImage(jobs: Jobs, path: string, options: InfoOptions): Promise<ImageDescription> {
  const [image] = await describeChain(jobs, path, options);
  if (image === undefined) throw new ToolError(`${path}: nothing is told of it`);
  return image;
}

const tableSchema = z.object({
  blocks: unsigned,
  sectorsPerBlock: z.int().positive(),
  bitmapSectors: unsigned,
  entries: z.array(unsigned),
  bitmaps: z.array(z.string().transform((digits) => Buffer.from(digits, "hex"))),
});

/** What the BAT says of blocks, and their bitmaps. */
export type BlockTable = z.infer<typeof tableSchema>;

/** The BAT entry of a block that isn't in the file. */
export const UNUSED = 0xffffffff;
/** Most blocks whose bitmaps are told at once. */
export const MAX_BITMAPS = 1 << 12;
const ALL = 0xffffffff;

/** The BAT entries of blocks, of all if no others are named, and their bitmaps where that is wanted. */
export async function blockTable(
  jobs: Jobs,
  path: string,
  { block = 0, count = ALL, bitmaps = false } = {},
): Promise<BlockTable> {
  return await jobs.run({ job: "blocks", path, block, count, bitmaps }, tableSchema);
}

/** Whether the bit of a sector is set in a block's bitmap. */
export function isSet(bitmap: Uint8Array, sector: number): boolean {
  return ((bitmap[sector >> 3] ?? 0) & (0x80 >> (sector & 7))) !== 0;
}

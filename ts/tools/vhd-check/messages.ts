/** What the main thread and the worker threads tell each other. */

import * as z from "zod";
import { resultSchema } from "./schema.ts";

/** How an image is to be looked at. */
export const requestSchema = z.object({
  depth: z.enum(["quick", "full", "data"]),
  chain: z.boolean(),
  stats: z.boolean(),
  ignore: z.object({
    primaryFooter: z.boolean(),
    parentUuid: z.boolean(),
    timestamps: z.boolean(),
    overlaps: z.boolean(),
  }),
  repair: z.boolean(),
  /** Path of the undo file; beside the image if there is none. */
  undoFile: z.string().optional(),
});

/** How an image is to be looked at. */
export type Request = z.infer<typeof requestSchema>;

/** To a worker. */
export const orderSchema = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("check"), path: z.string(), request: requestSchema }),
  /** Stop where that is safe; nothing follows. */
  z.object({ kind: z.literal("cancel") }),
]);

/** To a worker. */
export type Order = z.infer<typeof orderSchema>;

/** From a worker. */
export const newsSchema = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("progress"), phase: z.string(), done: z.number(), total: z.number() }),
  z.object({ kind: z.literal("result"), result: resultSchema }),
]);

/** From a worker. */
export type News = z.infer<typeof newsSchema>;

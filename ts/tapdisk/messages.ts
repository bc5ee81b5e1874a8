import * as z from "zod/mini";
import { openedDiskSchema } from "../engine/engine.ts";
import { backends } from "./port.ts";
import { drivers } from "./stack.ts";

const imageSchema = z.object({ driver: z.enum(drivers), name: z.string() });

/** How a disk is opened and served. */
export const diskOptionsSchema = z.object({
  /** The stack of images, leaf first. */
  stack: z.tuple([imageSchema], imageSchema),
  readOnly: z.boolean(),
  /** Go around the page cache. */
  direct: z.boolean(),
  backend: z.enum(backends),
  bitmapCacheBytes: z.int().check(z.positive()),
  pollMicroseconds: z.int().check(z.nonnegative()),
});

/** How a disk is opened and served. */
export type DiskOptions = z.infer<typeof diskOptionsSchema>;

/** The first message to a data plane worker: its disk, and the engine, whose code all workers share. */
export const openSchema = z.object({
  kind: z.literal("open"),
  disk: diskOptionsSchema,
  engine: z.instanceof(WebAssembly.Module),
});

/** The first message to a data plane worker. */
export type Open = z.infer<typeof openSchema>;

const fd = z.int().check(z.nonnegative());

/** From the main thread to the worker once the disk is open. After each message the worker has to be woken. */
export const controlSchema = z.discriminatedUnion("kind", [
  /** Serve a connection that has finished its handshake. The worker takes the descriptor over. */
  z.object({
    kind: z.literal("attachNbd"),
    request: z.int(),
    socket: fd,
    received: z.instanceof(Uint8Array),
    structuredReplies: z.boolean(),
    allocationContext: z.optional(z.int().check(z.nonnegative())),
    readOnly: z.boolean(),
  }),
  /** Serve a ring. The worker takes the descriptors over. */
  z.object({ kind: z.literal("attachRing"), request: z.int(), memory: fd, kick: fd, notify: fd }),
  /** Finish what a front end has in flight, then let it go. */
  z.object({ kind: z.literal("detach"), frontEnd: z.int() }),
  /** Make the disk larger, while it is in use. */
  z.object({ kind: z.literal("grow"), request: z.int(), sizeBytes: z.int().check(z.positive()) }),
  /** Let all front ends go, close the disk, and end. */
  z.object({ kind: z.literal("close") }),
]);

/** From the main thread to the worker. */
export type Control = z.infer<typeof controlSchema>;

/** From the worker to the main thread. */
export const reportSchema = z.discriminatedUnion("kind", [
  /** The disk is open; `wakeFd` wakes the worker. */
  z.object({ kind: z.literal("opened"), wakeFd: fd, backend: z.string(), disk: openedDiskSchema }),
  /** An error ended the worker while it opened or closed the disk. */
  z.object({ kind: z.literal("failed"), message: z.string() }),
  z.object({ kind: z.literal("attached"), request: z.int(), frontEnd: z.int() }),
  /** The disk is larger now. */
  z.object({ kind: z.literal("grown"), request: z.int() }),
  /** A front end can't be attached, or the disk not be made larger; `errno` is positive. */
  z.object({ kind: z.literal("refused"), request: z.int(), message: z.string(), errno: z.int() }),
  /** A front end has gone, by itself or because it was told to. */
  z.object({ kind: z.literal("frontEndClosed"), frontEnd: z.int() }),
  /** The disk is closed and everything of it is durable. */
  z.object({ kind: z.literal("closed") }),
]);

/** From the worker to the main thread. */
export type Report = z.infer<typeof reportSchema>;

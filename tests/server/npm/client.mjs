// The npm client's features against a server: node client.mjs BASE_URL FOLDER_WITH_NODE_MODULES
// Prints the name of each check that holds; the first that does not ends with its error.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";

const [baseURL, folder] = process.argv.slice(2);
const OpenAI = createRequire(join(folder, "package.json"))("openai").OpenAI;
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Hello" }];
const tools = [
  {
    type: "function",
    function: {
      name: "clock",
      parameters: {
        type: "object",
        properties: { zone: { enum: ["UTC", "CET"] } },
        required: ["zone"],
        additionalProperties: false,
      },
    },
  },
];

async function collect(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

const checks = {
  async models() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    assert.ok(ids.includes("alpha"));
    assert.equal((await client.models.retrieve("alpha@1")).root, "alpha@1");
  },

  async completions() {
    const ask = { model: "alpha", prompt: ["The quick", "Answer"], n: 2, max_tokens: 5, seed: 1, logprobs: 2 };
    const whole = await client.completions.create(ask);
    assert.equal(whole.choices.length, 4);
    const texts = ["", "", "", ""];
    for (const part of await collect(await client.completions.create({ ...ask, stream: true }))) {
      for (const choice of part.choices) texts[choice.index] += choice.text;
    }
    assert.deepEqual(texts, whole.choices.map((choice) => choice.text));
  },

  async chat() {
    const ask = { model: "beta", messages, max_completion_tokens: 8, temperature: 0, logprobs: true, top_logprobs: 2 };
    const whole = await client.chat.completions.create(ask);
    assert.equal(whole.choices[0].logprobs.content[0].top_logprobs.length, 2);
    const options = { stream: true, stream_options: { include_usage: true } };
    const parts = await collect(await client.chat.completions.create({ ...ask, ...options }));
    const text = parts.map((part) => part.choices[0]?.delta.content ?? "").join("");
    assert.equal(parts[0].choices[0].delta.role, "assistant");
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(parts.at(-1).usage.completion_tokens, whole.usage.completion_tokens);
  },

  async streamHelper() {
    const stream = client.chat.completions.stream({ model: "alpha", messages, max_tokens: 6, temperature: 0 });
    let text = "";
    stream.on("content", (delta) => (text += delta));
    assert.equal((await stream.finalChatCompletion()).choices[0].message.content, text);
  },

  async structuredOutput() {
    const schema = {
      type: "object",
      properties: { mood: { enum: ["good", "bad"] } },
      required: ["mood"],
      additionalProperties: false,
    };
    const answer = await client.chat.completions.parse({
      model: "alpha",
      messages,
      response_format: { type: "json_schema", json_schema: { name: "mood", schema, strict: true } },
    });
    assert.ok(["good", "bad"].includes(JSON.parse(answer.choices[0].message.content).mood));
  },

  async tools() {
    const ask = { model: "alpha", messages, tools, tool_choice: "required", seed: 3 };
    const call = (await client.chat.completions.create(ask)).choices[0].message.tool_calls[0];
    assert.equal(call.function.name, "clock");
    assert.ok(["UTC", "CET"].includes(JSON.parse(call.function.arguments).zone));
    const streamed = await client.chat.completions.stream(ask).finalChatCompletion();
    assert.equal(streamed.choices[0].finish_reason, "tool_calls");
    assert.equal(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
  },

  async runTools() {
    const zones = [];
    const run = (zone) => {
      zones.push(zone);
      return "noon";
    };
    const tool = { type: "function", function: { ...tools[0].function, parse: JSON.parse, function: run } };
    const choice = { type: "function", function: { name: "clock" } };
    const runner = client.chat.completions.runTools({ model: "alpha", messages, tools: [tool], tool_choice: choice });
    await runner.done();
    assert.equal(zones.length, 1);
  },

  async embeddings() {
    const [vector] = (await client.embeddings.create({ model: "alpha", input: "x" })).data;
    const length = Math.hypot(...vector.embedding);
    assert.ok(Math.abs(length - 1) < 1e-4);
  },

  async responses() {
    const ask = { model: "alpha", input: "Hello", max_output_tokens: 8, temperature: 0 };
    const whole = await client.responses.create(ask);
    const stream = client.responses.stream(ask);
    let text = "";
    stream.on("response.output_text.delta", (event) => (text += event.delta));
    assert.equal((await stream.finalResponse()).output_text, whole.output_text);
    assert.equal(text, whole.output_text);
  },

  async errors() {
    const missing = client.chat.completions.create({ model: "nobody", messages });
    await assert.rejects(missing, (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found");
    const stream = client.chat.completions.create({ model: "alpha", messages, n: 99, stream: true });
    await assert.rejects(stream, OpenAI.BadRequestError);
  },

  async leaving() {
    const stream = await client.completions.create({ model: "alpha", prompt: "x", max_tokens: 400, stream: true });
    for await (const part of stream) {
      assert.ok(part.choices);
      break;
    }
    assert.ok(stream.controller.signal.aborted);
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log(name);
}
